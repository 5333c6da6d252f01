//! Gives disks their names in the host's order.
//!
//! The kernel's disk driver probes disks side by side, and whichever comes first is `sda`. So no
//! driver is bound by itself while the disks are found; then they are bound one after the other.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
    thread,
    time::{Duration, Instant},
};

const PARAMETER: &str = "teuthis.disks=";
const BIND_BY_ITSELF: &str = "/sys/bus/scsi/drivers_autoprobe";
const BIND: &str = "/sys/bus/scsi/drivers/sd/bind";
const FOUND: &str = "/sys/class/scsi_device";
const HOSTS: &str = "/sys/class/scsi_host";
/// How long the host may take to show all disks.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// How many disks the kernel's command line announces.
pub fn announced(command_line: &str) -> usize {
    command_line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(PARAMETER)?.parse().ok())
        .unwrap_or(0)
}

/// From now on disks are found, not used.
pub fn hold() -> io::Result<()> {
    set(BIND_BY_ITSELF, "0")
}

/// Waits for `count` disks and makes them usable in the order of their numbers.
pub fn attach(count: usize) -> io::Result<()> {
    let start = Instant::now();
    let mut disks = found()?;
    while disks.len() < count {
        if start.elapsed() > PATIENCE {
            let there = disks.len();
            return Err(io::Error::other(format!("{there} of {count} are there")));
        }
        thread::sleep(PAUSE);
        disks = found()?;
    }
    for (_, name) in disks {
        if !Path::new(FOUND).join(&name).join("device/driver").exists() {
            set(BIND, &name)?;
        }
    }
    set(BIND_BY_ITSELF, "1")
}

/// As [`attach`] for a machine that went on with more disks than it had: those that it had keep
/// their names.
pub fn attach_more(count: usize) -> io::Result<()> {
    hold()?;
    for host in fs::read_dir(HOSTS).into_iter().flatten().flatten() {
        match set(host.path().join("scan"), "- - -") {
            // It is just being added, and its disks are looked for when it has been.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    attach(count)
}

/// Writes to a file of sysfs: one that is not there yet is missing, and not forbidden to be made.
fn set(file: impl AsRef<Path>, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    file.write_all(value.as_bytes())
}

/// (number, name) of each disk there is; a name is HOST:BUS:TARGET:NUMBER.
fn found() -> io::Result<Vec<(u32, String)>> {
    if !Path::new(FOUND).exists() {
        return Ok(Vec::new());
    }
    let mut disks = Vec::new();
    for entry in fs::read_dir(FOUND)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(number) = name.rsplit(':').next().and_then(|last| last.parse().ok()) {
            disks.push((number, name));
        }
    }
    disks.sort();
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::announced;

    #[test]
    fn the_command_line_announces_disks() {
        assert_eq!(announced("quiet teuthis.disks=3 panic=-1\n"), 3);
        assert_eq!(announced("teuthis.disks=x"), 0);
        assert_eq!(announced(""), 0);
    }
}
