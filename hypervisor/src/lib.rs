//! The Teuthis hypervisor: one virtual machine's processor and partition interface, nothing else.
//!
//! Rooms: [`memory`] guest RAM, [`processor`] what runs the guest's instructions, `tlfs` the
//! Hyper-V-compatible partition interface, `link` the one connection to the VM's worker.

pub mod flows;
pub mod memory;
pub mod processor;
