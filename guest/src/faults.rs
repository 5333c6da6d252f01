//! How much of a file the kernel maps when a program touches one page of it.

use std::{fs, io, path::Path};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

const PARAMETER: &str = "teuthis.fault-around=";
const DEBUGFS: &str = "debugfs";
/// The kernel has no other way to this setting than the file system of its debugging aids.
const PLACE: &str = "/sys/kernel/debug";
const SETTING: &str = "fault_around_bytes";

/// Bytes that the command line wants mapped around a page.
pub fn wanted(command_line: &str) -> Option<u64> {
    command_line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(PARAMETER)?.parse().ok())
}

/// Lets the kernel map so many. One that was made without debugfs keeps its own number.
pub fn map_around(bytes: u64) -> io::Result<()> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some(DEBUGFS), PLACE, Some(DEBUGFS), strict, None::<&str>) {
        Ok(()) => {}
        Err(Errno::ENODEV | Errno::ENOENT | Errno::EPERM) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let set = fs::write(Path::new(PLACE).join(SETTING), bytes.to_string());
    umount2(PLACE, MntFlags::MNT_DETACH)?;
    set
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn the_command_line_says_how_much() {
        assert_eq!(
            wanted("quiet teuthis.fault-around=16384 panic=-1\n"),
            Some(16384)
        );
        assert_eq!(wanted("teuthis.fault-around=much"), None);
        assert_eq!(wanted(""), None);
    }
}
