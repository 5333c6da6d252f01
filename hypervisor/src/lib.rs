//! The Teuthis hypervisor: one virtual machine's processor and partition interface, nothing else.
//!
//! Rooms: [`memory`] guest RAM, [`processor`] what runs the guest's instructions, [`tlfs`] the
//! Hyper-V-compatible partition interface, [`ports`] the few legacy ports, [`link`] and
//! [`doorbells`] the one connection to the VM's worker, [`counters`] the live counters.

pub mod counters;
pub mod doorbells;
pub mod flows;
pub mod link;
pub mod memory;
pub mod ports;
pub mod processor;
pub mod shared;
pub mod tlfs;
