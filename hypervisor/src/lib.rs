//! The Teuthis hypervisor: one virtual machine's processor and partition interface, nothing else.
//!
//! Rooms: [`memory`] guest RAM, [`processor`] what runs the guest's instructions, [`tlfs`] the
//! Hyper-V-compatible partition interface, [`ports`] the few legacy ports, [`ioapic`]
//! one interrupt, [`link`] and [`doorbells`] the one connection to the VM's worker, [`machine`] the
//! loop that ties them together, `lockstep` the same step by step, `recording` what that leaves and
//! how it is replayed, [`clock`] the time it has, [`jail`] the walls around this process,
//! [`counters`] what is counted.

pub mod arguments;
pub mod clock;
pub mod counters;
pub mod doorbells;
#[cfg(debug_assertions)]
pub mod evidence;
pub mod flows;
pub mod guest;
pub mod ioapic;
pub mod jail;
pub mod link;
#[cfg(feature = "soft")]
pub mod lockstep;
pub mod machine;
pub mod memory;
pub mod ports;
pub mod processor;
pub mod record;
#[cfg(feature = "soft")]
pub mod recording;
pub mod shared;
pub mod template;
pub mod tlfs;
