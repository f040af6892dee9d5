//! The layer-4 director's decisions: frame and tables in, verdict out. Pure: no socket, no clock.
//!
//! - [`config`]: what is configured, validated.
//! - [`registry`]: one object on the control side. It is told facts (the configuration, health,
//!   neighbours, which addresses are held) and makes [`tables::Tables`] of them.
//! - [`tables`]: an immutable snapshot that every director reads.
//! - [`Director`]: one for each director CPU, with a flow table of its own. All frames of one
//!   client address to one virtual address should come to the same director: its flows,
//!   fragments and ICMP errors then find each other (see [`steer`]).

pub mod config;
mod director;
pub mod engine;
pub mod figures;
mod flow;
pub mod handoff;
pub mod hash;
pub mod offload;
pub mod persistence;
pub mod registry;
mod schedule;
pub mod status;
pub mod steer;
pub mod tables;

pub use director::{Director, Frame, Reason, Verdict};
