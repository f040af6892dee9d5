//! HTTP/2 connections to servers.
