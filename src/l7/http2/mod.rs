//! HTTP/2 connections over a transport: many streams, each of which looks like a connection of its own
//! to the code that serves requests or asks servers.
//!
//! A connection is one task ([`mux::Mux`] is what it shares with its streams): it reads frames, puts
//! bodies into the streams' queues, and writes what the streams have queued, a frame at a time in
//! turn. Everything a round of tasks has queued goes out in as few writes as possible.

pub mod client;
pub mod mux;
pub mod server;
mod slot;
pub mod stream;

pub use mux::Mux;
pub use stream::Http2Stream;
