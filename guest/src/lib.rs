//! The agent inside a Teuthis virtual machine: runs commands and moves files for the host.
//!
//! The session logic knows nothing of its transport (any stream socket will do), so that it is
//! tested on the host over a socket pair.
#![deny(unsafe_code)]

pub mod agent;
mod clock;
mod command;
mod disks;
mod entropy;
mod faults;
mod file;
pub mod flows;
pub mod frames;
pub mod log;
pub mod network;
mod outgoing;
pub mod power;
mod root;
mod session;
mod setting;
pub mod system;
mod terminal;
pub mod transport;
mod user;
mod warm;
