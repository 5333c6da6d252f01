//! What the kernel refuses this process: all that Landlock knows, and every system call that the
//! run loop does not make.

use super::Jail;
use crate::processor::kvm::{Descriptors, RESTORE_CALLS, SAVE_CALLS, VCPU_CALLS, VM_CALLS};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::{io, os::fd::RawFd};

/// Denies every path, TCP port, abstract socket and signal to others that the kernel can deny.
pub fn landlock() -> io::Result<()> {
    let newest = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(newest)))
        .and_then(|rules| rules.scope(Scope::from_all(newest)))
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.no_new_privs(false).restrict_self())
        .map_err(io::Error::other)?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(io::Error::other("the kernel has no Landlock")),
        _ => Ok(()),
    }
}

/// Answers every call but those of the run loop with the death of this process.
pub fn system_calls(jail: &Jail) -> io::Result<()> {
    let filter = filter(jail).map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&filter).map_err(io::Error::other)
}

fn filter(jail: &Jail) -> Result<BpfProgram, BackendError> {
    let on = |fd: RawFd| (0, SeccompCmpOp::Eq, fd as u64);
    let null = |argument| (argument, SeccompCmpOp::Eq, 0);
    let each =
        |fds: &[RawFd]| -> Result<Vec<_>, _> { fds.iter().map(|&fd| rule(&[on(fd)])).collect() };
    // 2 is stderr, for the last words of a panic.
    let mut writes = each(&jail.writes)?;
    writes.push(rule(&[(0, SeccompCmpOp::Eq, 2)])?);
    let mut rules: Vec<(c_long, Vec<SeccompRule>)> = vec![
        // Doorbells, or a recording.
        (libc::SYS_read, each(&jail.reads)?),
        (libc::SYS_write, writes),
        // The time on hosts whose vDSO cannot tell it.
        (libc::SYS_clock_gettime, vec![]),
        // RDRAND and RDSEED.
        (libc::SYS_getrandom, vec![]),
        // The allocator: anonymous private memory that is never executable, never over another
        // mapping. Arguments: protection, flags.
        (
            libc::SYS_mmap,
            vec![rule(&[
                (2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0),
                (
                    3,
                    SeccompCmpOp::MaskedEq(u64::from(u32::MAX)),
                    (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE) as u64,
                ),
            ])?],
        ),
        (
            libc::SYS_mremap,
            vec![rule(&[(3, SeccompCmpOp::Eq, libc::MREMAP_MAYMOVE as u64)])?],
        ),
        (libc::SYS_munmap, vec![]),
        (libc::SYS_brk, vec![]),
        (libc::SYS_exit_group, vec![]),
    ];
    if let Some(link) = jail.link {
        // Sleep until the worker wakes us; its messages, to and from nobody else.
        rules.push((libc::SYS_ppoll, vec![rule(&[null(3)])?]));
        for call in [libc::SYS_sendto, libc::SYS_recvfrom] {
            rules.push((call, vec![rule(&[on(link), null(4)])?]));
        }
    }
    if let Some(kvm) = &jail.kvm {
        rules.extend(kvm_calls(kvm)?);
    }
    SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

/// What the kvm processor needs beside: to run the guest, to interrupt it, to be interrupted, to be
/// saved; and with several of them, to wait for each other.
fn kvm_calls(kvm: &Descriptors) -> Result<Vec<(c_long, Vec<SeccompRule>)>, BackendError> {
    let restoring = RESTORE_CALLS.iter().filter(|_| kvm.restores);
    let requests = VCPU_CALLS.iter().chain(&SAVE_CALLS).chain(restoring);
    let vm = VM_CALLS.map(|request| (kvm.vm, request));
    // KVM_RUN of each processor comes first: it is what is made all the time.
    let vcpus = requests.flat_map(|&request| kvm.vcpus.iter().map(move |&vcpu| (vcpu, request)));
    let request = |(fd, request): (RawFd, u64)| {
        rule(&[
            (0, SeccompCmpOp::Eq, fd as u64),
            (1, SeccompCmpOp::Eq, request),
        ])
    };
    let requests: Result<Vec<_>, _> = vm.into_iter().chain(vcpus).map(request).collect();
    let null = |argument| (argument, SeccompCmpOp::Eq, 0);
    let mut calls = vec![
        (libc::SYS_ioctl, requests?),
        (libc::SYS_timer_settime, vec![rule(&[null(1), null(3)])?]),
        (libc::SYS_rt_sigtimedwait, vec![rule(&[null(1)])?]),
    ];
    if kvm.vcpus.len() > 1 {
        calls.push((libc::SYS_futex, vec![]));
    }
    Ok(calls)
}

/// All of `conditions`: argument number, comparison, value.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
    let condition = |(argument, comparison, value): &(u8, SeccompCmpOp, u64)| {
        // Descriptors and flags are 32 bits wide, the upper half is whatever was there; of a
        // pointer nothing may be set.
        let width = match (comparison, value) {
            (SeccompCmpOp::Eq, 0) => SeccompCmpArgLen::Qword,
            _ => SeccompCmpArgLen::Dword,
        };
        SeccompCondition::new(*argument, width, comparison.clone(), *value)
    };
    let conditions: Result<Vec<_>, _> = conditions.iter().map(condition).collect();
    SeccompRule::new(conditions?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::values::KVM_APIC_PROCESSORS_MAX;

    #[test]
    fn the_filter_of_the_largest_machine_is_one_that_the_kernel_takes() {
        const MOST: usize = 4096;
        let first = 10;
        let jail = Jail {
            link: Some(3),
            reads: vec![4],
            writes: vec![5],
            kvm: Some(Descriptors {
                vm: 9,
                vcpus: (first..).take(KVM_APIC_PROCESSORS_MAX as usize).collect(),
                restores: true,
            }),
            memory: 0,
            uid: None,
            allow_missing: &[],
        };
        assert!(filter(&jail).unwrap().len() <= MOST);
    }
}
