//! Any page of doorbells, which the worker may write at any time.

use super::bytes::Bytes;
use rustix::{event, fs};
use std::os::fd::OwnedFd;
use teuthis_hypervisor::{counters::Counters, doorbells::Doorbells};

const PAGE: usize = 4096;

pub fn run(data: &[u8]) {
    let page = fs::memfd_create("doorbells", fs::MemfdFlags::CLOEXEC).unwrap();
    fs::ftruncate(&page, PAGE as u64).unwrap();
    let mut bytes = Bytes(data);
    // Where the worker writes, and what.
    for _ in 0..bytes.byte() {
        let (at, content) = (bytes.below(PAGE as u64), bytes.byte());
        let content = vec![content; 1 + usize::from(bytes.byte() % 8)];
        rustix::io::pwrite(&page, &content[..content.len().min(PAGE - at as usize)], at).unwrap();
    }
    let counters = Counters::anonymous().unwrap();
    let doorbells = Doorbells::map(&page, eventfd(), eventfd(), counters).unwrap();
    let mut rang = 0;
    doorbells.take(2, |channel, vp| {
        assert!((1..2048).contains(&channel) && vp < 2);
        rang += 1;
    });
    assert!(rang < 2048);
    doorbells.take(2, |channel, _| panic!("{channel} rang twice"));
    assert!(!doorbells.attention());
}

fn eventfd() -> OwnedFd {
    event::eventfd(0, event::EventfdFlags::CLOEXEC).unwrap()
}
