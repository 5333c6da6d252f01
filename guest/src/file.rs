//! Files out of the guest and into it.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use nix::{errno::Errno, fcntl::OFlag};

use crate::{
    frames::{INITIAL_CREDIT, MAX_DATA_BYTES, Reply, Stream},
    outgoing::Outgoing,
};

/// A file on its way to the host.
pub struct Sending {
    file: File,
    credit: u32,
    total: u64,
}

impl Sending {
    pub fn open(path: &Path) -> io::Result<Self> {
        // Non-blocking: a FIFO without a writer must not stop the agent.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)?;
        if file.metadata()?.is_dir() {
            return Err(Errno::EISDIR.into());
        }
        Ok(Self {
            file,
            credit: INITIAL_CREDIT,
            total: 0,
        })
    }

    pub fn grant(&mut self, credit: u32) {
        self.credit = self.credit.saturating_add(credit);
    }

    pub fn can_read(&self) -> bool {
        self.credit > 0
    }

    /// Sends what credit and room allow. True when all is said.
    pub fn advance(&mut self, outgoing: &mut Outgoing) -> io::Result<bool> {
        let mut buffer = [0; MAX_DATA_BYTES];
        while self.credit > 0 && outgoing.has_room() {
            let room = buffer.len().min(self.credit as usize);
            let count = self.file.read(&mut buffer[..room])?;
            if count == 0 {
                outgoing.push(&Reply::Done { bytes: self.total });
                return Ok(true);
            }
            self.credit -= count as u32;
            self.total += count as u64;
            outgoing.push(&Reply::Output(Stream::Stdout, &buffer[..count]));
        }
        Ok(false)
    }
}

/// A file on its way from the host.
pub struct Receiving {
    file: File,
    total: u64,
}

impl Receiving {
    /// Creates or replaces the file; its mode is `mode` whatever it was before.
    pub fn create(path: &Path, mode: u32) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)?;
        if file.metadata()?.is_file() {
            file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        }
        Ok(Self { file, total: 0 })
    }

    pub fn write(&mut self, bytes: &[u8], outgoing: &mut Outgoing) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.total += bytes.len() as u64;
        outgoing.push(&Reply::Window {
            credit: bytes.len() as u32,
        });
        Ok(())
    }

    pub fn finish(&self, outgoing: &mut Outgoing) {
        outgoing.push(&Reply::Done { bytes: self.total });
    }
}
