//! A root file system on a disk: waits for the disk, mounts it and moves into it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, chroot, sethostname},
};

const PARAMETER: &str = "teuthis.root=";
const FILE_SYSTEM: &str = "ext4";
const NEW_ROOT: &str = "/newroot";
/// Mounts that the new root takes over.
const MOVED: [&str; 4] = ["/dev", "/proc", "/sys", "/run"];
/// Disks are found a while after their driver has been loaded.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// The device that the kernel's command line names as root, such as `sda1`.
pub fn wanted(command_line: &str) -> Option<&str> {
    command_line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(PARAMETER))
}

/// Makes the file system on `/dev/NAME` the root; what the initrd held is freed.
pub fn enter(name: &str) -> io::Result<()> {
    let device = Path::new("/dev").join(name);
    await_device(&device)?;
    fs::create_dir_all(NEW_ROOT)?;
    mount_disk(&device).map_err(|error| {
        io::Error::other(format!("no {FILE_SYSTEM} file system on it ({error})"))
    })?;
    let new_root = Path::new(NEW_ROOT);
    for place in MOVED {
        let target = new_root.join(&place[1..]);
        let _ = fs::create_dir(&target);
        mount(
            Some(place),
            &target,
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )?;
    }
    let _ = umount2("/tmp", MntFlags::MNT_DETACH);
    free_initrd();
    chdir(new_root)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    if let Ok(hostname) = fs::read_to_string("/etc/hostname") {
        sethostname(hostname.trim())?;
    }
    Ok(())
}

fn await_device(device: &Path) -> io::Result<()> {
    let start = Instant::now();
    while !device.exists() {
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other("there is no such disk"));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Read-only, if the disk is.
fn mount_disk(device: &Path) -> nix::Result<()> {
    let attempt = |flags| {
        mount(
            Some(device),
            NEW_ROOT,
            Some(FILE_SYSTEM),
            flags,
            None::<&str>,
        )
    };
    match attempt(MsFlags::MS_RELATIME) {
        Err(Errno::EACCES | Errno::EROFS) => attempt(MsFlags::MS_RDONLY),
        result => result,
    }
}

/// The files of the initrd lie in memory, and nobody can reach them any more.
fn free_initrd() {
    let Ok(own) = fs::metadata("/") else { return };
    let entries = fs::read_dir("/").into_iter().flatten().flatten();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    for path in paths {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.dev() != own.dev() => {} // the new root
            Ok(found) if found.is_dir() => _ = fs::remove_dir_all(&path),
            _ => _ = fs::remove_file(&path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn the_command_line_names_the_root() {
        assert_eq!(wanted("quiet teuthis.root=sda1 panic=-1\n"), Some("sda1"));
        assert_eq!(wanted("quiet root=/dev/sda xteuthis.root=sdb"), None);
        assert_eq!(wanted(""), None);
    }
}
