//! Any page of doorbells, which the worker may write at any time.

use rustix::{event, fs};
use std::os::fd::OwnedFd;
use teuthis_hypervisor::{counters::Counters, doorbells::Doorbells};

const PAGE: usize = 4096;

pub fn run(data: &[u8]) {
    let page = fs::memfd_create("doorbells", fs::MemfdFlags::CLOEXEC).unwrap();
    let content = &data[..data.len().min(PAGE)];
    fs::ftruncate(&page, PAGE as u64).unwrap();
    rustix::io::pwrite(&page, content, 0).unwrap();
    let counters = Counters::anonymous().unwrap();
    let doorbells = Doorbells::map(&page, eventfd(), eventfd(), counters).unwrap();
    let mut rang = 0;
    doorbells.take(|channel| {
        assert!((1..2048).contains(&channel));
        rang += 1;
    });
    assert!(rang < 2048);
    doorbells.take(|channel| panic!("{channel} rang twice"));
    assert!(!doorbells.attention());
}

fn eventfd() -> OwnedFd {
    event::eventfd(0, event::EventfdFlags::CLOEXEC).unwrap()
}
