//! A Python that has started before and waits for a program, if the host has put one into the guest
//! (`src/teuthis/warm`). Whatever is wrong with it, the program starts as any other.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IoSlice},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    slice,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv,
            sendmsg, setsockopt, socket, sockopt,
        },
        time::TimeVal,
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};

use crate::setting::Setting;

/// Where it waits. Only root can put something there.
const SOCKET: &str = "/run/teuthis-python";
/// How long each answer may take, on a host that has much else to do.
const PATIENCE: TimeVal = TimeVal::new(5, 0);

/// Lets it begin the program with these words. None: that is not for it, or it is not there.
pub fn start(argv: &[OsString], setting: &Setting) -> Option<io::Result<Pid>> {
    // The one that waits is root's: others get an interpreter of their own.
    if setting.user.is_some() || !is_python(argv.first()?) {
        return None;
    }
    let (interpreter, pid) = find().ok()?;
    match hand_over(&interpreter, &request(argv, setting), setting.streams) {
        Ok(0) => Some(Ok(pid)),
        Ok(errno) => Some(Err(io::Error::from_raw_os_error(errno))),
        Err(_) => {
            // It must not begin after all.
            let _ = kill(pid, Signal::SIGKILL);
            None
        }
    }
}

/// `python`, `python3` or `python3.13`, wherever it is.
fn is_python(program: &OsStr) -> bool {
    let name = program.as_bytes().rsplit(|&byte| byte == b'/').next();
    let version = name.and_then(|name| name.strip_prefix(b"python"));
    version.is_some_and(|version| {
        version.is_empty() || version == b"3" || version.strip_prefix(b"3.").is_some_and(is_number)
    })
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// What it is told: fields with zeros between them.
fn request(argv: &[OsString], setting: &Setting) -> Vec<u8> {
    let mut fields = vec![
        u8::from(setting.has_terminal).to_string().into(),
        argv.len().to_string().into(),
        setting.directory.as_os_str().as_bytes().to_vec(),
    ];
    fields.extend(argv.iter().map(|word| word.as_bytes().to_vec()));
    for (name, value) in &setting.environment {
        fields.push([name.as_bytes(), b"=", value.as_bytes()].concat());
    }
    fields.join(&0)
}

/// A connection to an interpreter that waits, and its process, which must be a child of ours.
fn find() -> nix::Result<(OwnedFd, Pid)> {
    let interpreter = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&interpreter, sockopt::SendTimeout, &PATIENCE)?;
    setsockopt(&interpreter, sockopt::ReceiveTimeout, &PATIENCE)?;
    connect(interpreter.as_raw_fd(), &UnixAddr::new(SOCKET)?)?;
    let pid = Pid::from_raw(receive(&interpreter)?);
    // Of others we would not see the end.
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    if pid.as_raw() <= 1 {
        return Err(Errno::EPROTO);
    }
    waitid(Id::Pid(pid), peek)?;
    Ok((interpreter, pid))
}

/// Returns 0 when the program runs, or why it cannot. As a started program does with the sockets it
/// inherits, the interpreter closes its end when all is well.
fn hand_over(interpreter: &OwnedFd, request: &[u8], streams: &[OwnedFd; 3]) -> nix::Result<i32> {
    let streams = streams.each_ref().map(|stream| stream.as_raw_fd());
    sendmsg::<()>(
        interpreter.as_raw_fd(),
        &[IoSlice::new(request)],
        slice::from_ref(&ControlMessage::ScmRights(&streams)),
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    match receive(interpreter) {
        Err(Errno::ENODATA) => Ok(0),
        answer => answer,
    }
}

/// A number; `ENODATA` when the connection has been closed.
fn receive(interpreter: &impl AsFd) -> nix::Result<i32> {
    let mut number = [0; 4];
    match recv(
        interpreter.as_fd().as_raw_fd(),
        &mut number,
        MsgFlags::empty(),
    )? {
        0 => Err(Errno::ENODATA),
        4 => Ok(i32::from_le_bytes(number)),
        _ => Err(Errno::EPROTO),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn names_of_python() {
        for name in ["python", "python3", "python3.9", "/usr/bin/python3.13"] {
            assert!(is_python(name.as_ref()), "{name}");
        }
        for name in [
            "python2",
            "python3.",
            "python3-config",
            "xpython3",
            "/python3/sh",
            "",
        ] {
            assert!(!is_python(name.as_ref()), "{name}");
        }
    }

    #[test]
    fn what_it_is_told() {
        let argv = ["python3", "-c"].map(OsString::from);
        let streams = [0, 1, 2].map(|_| std::io::pipe().unwrap().0.into());
        let setting = Setting {
            environment: [(OsStr::new("A"), OsStr::new("b=c"))].into(),
            directory: Path::new("/tmp"),
            streams: &streams,
            has_terminal: true,
            user: None,
        };
        let expected = b"1\x002\0/tmp\0python3\0-c\0A=b=c";
        assert_eq!(request(&argv, &setting), expected);
        // Where it is not, a program starts as any other.
        assert!(start(&argv, &setting).is_none());
        assert!(start(&[], &setting).is_none());
    }
}
