#![doc = include_str!("ARCHITECTURE.md")]

pub mod balance;
pub mod cli;
pub mod control;
pub mod counter;
pub mod ha;
pub mod health;
pub mod l4;
pub mod l7;
pub mod packet;
pub mod protocol;
pub mod ring;
pub mod shard;
pub mod sys;
pub mod tune;
