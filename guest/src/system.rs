//! What an init process does before and after the host is greeted.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::Path,
    process::exit,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::stat::{Mode, umask},
    unistd::sethostname,
};

use crate::{disks, faults, log, network, root};

/// File system type, where, options, flags.
const MOUNTS: [(&str, &str, &str, MsFlags); 7] = {
    let strict = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
    let stricter = strict.union(MsFlags::MS_NOEXEC);
    [
        ("proc", "/proc", "", stricter),
        ("sysfs", "/sys", "", stricter),
        ("devtmpfs", "/dev", "mode=0755", MsFlags::MS_NOSUID),
        (
            "devpts",
            "/dev/pts",
            "mode=0620,ptmxmode=0666",
            MsFlags::MS_NOSUID,
        ),
        ("tmpfs", "/dev/shm", "mode=1777", strict),
        ("tmpfs", "/tmp", "mode=1777", strict),
        ("tmpfs", "/run", "mode=0755", strict),
    ]
};

/// A kernel module that is to be loaded.
pub struct Module {
    name: String,
    file: File,
}

/// The driver that finds disks.
const STORAGE: &str = "hv_storvsc.ko";
const MODULES: &str = "/lib/modules";
/// Names of files in [`MODULES`], one a line, each after those it depends on.
const LOAD_ORDER: &str = "/lib/modules/load-order";
/// The same for those that can wait.
const LOAD_LATE: &str = "/lib/modules/load-late";

/// Mounts, modules, disks and the root on one of them. Without its disks a guest is not the one that
/// was asked for; whatever else fails is logged: a guest with less is better than none.
///
/// Returns the modules that can wait: open files, whatever becomes of the file system they are in.
pub fn prepare() -> io::Result<Vec<Module>> {
    umask(Mode::from_bits_truncate(0o022));
    for (kind, target, options, flags) in MOUNTS {
        report(target, mount_at(kind, target, options, flags));
    }
    for (name, target) in [
        ("fd", ""),
        ("stdin", "/0"),
        ("stdout", "/1"),
        ("stderr", "/2"),
    ] {
        let _ = symlink(format!("/proc/self/fd{target}"), format!("/dev/{name}"));
    }
    report("hostname", sethostname("teuthis").map_err(Into::into));
    load(listed(LOAD_ORDER));
    let late = listed(LOAD_LATE);
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some(bytes) = faults::wanted(&command_line) {
        report("mapping of files", faults::map_around(bytes));
    }
    let count = disks::announced(&command_line);
    if count > 0 {
        disks::attach(count).map_err(|error| named("disks", error))?;
    }
    if let Some(device) = root::wanted(&command_line) {
        root::enter(device).map_err(|error| named(&format!("root disk {device}"), error))?;
    }
    Ok(late)
}

/// Loads modules, in their order.
pub fn load(modules: Vec<Module>) {
    for Module { name, file } in modules {
        if name == STORAGE {
            report("disks", disks::hold());
        }
        let loaded = match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        };
        report(&name, loaded);
    }
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The network, once the root file system is there: the host's greeting says that it is ready.
pub fn connect() {
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    report("network", network::configure(&command_line));
}

/// Makes use of devices that the machine has got while it stood still. As at boot, a guest without
/// its disks is not the one that was asked for. Returns the network that is to be brought up.
pub fn changed(news: &str) -> Option<network::Pending> {
    let count = disks::announced(news);
    if count > 0
        && let Err(error) = disks::attach_more(count)
    {
        log::line(&named("disks", error).to_string());
        exit(1);
    }
    network::Pending::parse(news)
}

/// Brings the network up, if its adapter is there by now; whether nothing is left to be done.
pub fn bring_up(network: &network::Pending) -> bool {
    network
        .advance()
        .map(|done| report("network", done))
        .is_some()
}

fn listed(order: &str) -> Vec<Module> {
    let names = fs::read_to_string(order).unwrap_or_default();
    let open = |name: &str| match File::open(Path::new(MODULES).join(name)) {
        Ok(file) => Some(Module {
            name: name.to_owned(),
            file,
        }),
        Err(error) => {
            report(name, Err(error));
            None
        }
    };
    names.lines().filter_map(open).collect()
}

/// What can wait until the host has been greeted: the loopback interface.
pub fn finish() {
    report("loopback interface", network::loopback());
}

fn mount_at(kind: &str, target: &str, options: &str, flags: MsFlags) -> io::Result<()> {
    fs::create_dir_all(target)?;
    match mount(Some(kind), target, Some(kind), flags, Some(options)) {
        // A kernel may mount /dev by itself.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn report(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::line(&format!("{what}: {error}"));
    }
}
