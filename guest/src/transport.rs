//! The way to the host: vsock, carried by hv_sock.

use std::{
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

use crate::{agent::Listener, frames::PORT};

const CONNECT_ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

pub struct Ends {
    pub listener: VsockListener,
    /// Our connection to the host, on which the greeting goes out.
    pub greeting: OwnedFd,
}

/// Listens for the host, then connects to it: once it hears from us, it may connect.
pub fn connect() -> io::Result<Ends> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT)?;
    listener.set_nonblocking(true)?;
    let mut attempt = 1;
    loop {
        match VsockStream::connect_with_cid_port(VMADDR_CID_HOST, PORT) {
            Ok(stream) => {
                return Ok(Ends {
                    listener,
                    greeting: stream.into(),
                });
            }
            Err(error) if attempt == CONNECT_ATTEMPTS => return Err(error),
            Err(_) => thread::sleep(PAUSE),
        }
        attempt += 1;
    }
}

impl Listener for VsockListener {
    fn accept(&self) -> io::Result<OwnedFd> {
        let (stream, from) = self.accept()?;
        // A loopback leads here from the guest's own programs, which may have fewer rights than we.
        if from.cid() != VMADDR_CID_HOST {
            return Err(ErrorKind::PermissionDenied.into());
        }
        Ok(stream.into())
    }
}
