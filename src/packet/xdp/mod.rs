//! The director's fast path: an XDP program, assembled here.

pub mod assembler;
