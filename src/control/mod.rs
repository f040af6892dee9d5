//! Everything that steers the services: the configuration file, and what is built from it.

pub mod config;
