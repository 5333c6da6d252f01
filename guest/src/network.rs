//! The network interface as the host told us to have it: `teuthis.net=` on the command line.
//!
//! `teuthis.net=10.126.7.2/24,mtu=65520,gateway=10.126.7.1,dns=192.0.2.53`; all but the address
//! may be missing, `dns` may be repeated. The kernel is told by route netlink (RFC 3549).

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

const PARAMETER: &str = "teuthis.net=";
const INTERFACES: &str = "/sys/class/net";
const DRIVER: &str = "hv_netvsc";
const USUAL: &str = "eth0";
const LOOPBACK_INDEX: u32 = 1;
/// How long the driver may take to find the adapter.
const PATIENCE: Duration = Duration::from_secs(30);
pub const POLL: Duration = Duration::from_millis(2);
const RESOLVER: &str = "/etc/resolv.conf";

/// What the host wants of the interface.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of which adapter: a machine that goes on from a saved one has another than that.
    mac: Option<String>,
    address: Ipv4Addr,
    prefix: u8,
    mtu: Option<u32>,
    gateway: Option<Ipv4Addr>,
    name_servers: Vec<Ipv4Addr>,
}

impl Settings {
    /// The settings in a kernel command line, if it has any.
    pub fn parse(command_line: &str) -> Option<Self> {
        let text = command_line
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(PARAMETER))?;
        let (address, rest) = text.split_once(',').unwrap_or((text, ""));
        let (address, prefix) = address.split_once('/')?;
        let mut settings = Self {
            mac: None,
            address: address.parse().ok()?,
            prefix: prefix.parse().ok().filter(|prefix| *prefix <= 32)?,
            mtu: None,
            gateway: None,
            name_servers: Vec::new(),
        };
        for item in rest.split(',').filter(|item| !item.is_empty()) {
            match item.split_once('=')? {
                ("mac", value) => settings.mac = Some(value.to_owned()),
                ("mtu", value) => settings.mtu = Some(value.parse().ok()?),
                ("gateway", value) => settings.gateway = Some(value.parse().ok()?),
                ("dns", value) => settings.name_servers.push(value.parse().ok()?),
                _ => return None,
            }
        }
        Some(settings)
    }

    /// `interface`: its directory in [`INTERFACES`].
    fn apply(&self, interface: &Path) -> io::Result<()> {
        let number = fs::read_to_string(interface.join("ifindex"))?;
        let index = number.trim().parse().map_err(io::Error::other)?;
        let mut route = Route::open()?;
        if let Some(mtu) = self.mtu {
            route.mtu(index, mtu)?;
        }
        route.up(index)?;
        route.address(index, self.address, self.prefix)?;
        if let Some(gateway) = self.gateway {
            route.gateway(index, gateway)?;
        }
        if !self.name_servers.is_empty() {
            // It may be a link to where a service of the distribution would write.
            let _ = fs::remove_file(RESOLVER);
            fs::write(RESOLVER, self.resolver())?;
        }
        Ok(())
    }

    fn resolver(&self) -> String {
        self.name_servers
            .iter()
            .map(|server| format!("nameserver {server}\n"))
            .collect()
    }
}

/// Brings the loopback interface up; the kernel gives it its address.
pub fn loopback() -> io::Result<()> {
    Route::open()?.up(LOOPBACK_INDEX)
}

/// Brings the network up as the host says on the kernel's command line; nothing without that.
pub fn configure(parameters: &str) -> io::Result<()> {
    let Some(pending) = Pending::parse(parameters) else {
        return Ok(());
    };
    loop {
        if let Some(done) = pending.advance() {
            return done;
        }
        thread::sleep(POLL);
    }
}

/// A network to be brought up as soon as its adapter is there: the driver looks for it in the background.
pub struct Pending {
    settings: Settings,
    deadline: Instant,
}

impl Pending {
    /// What the host says of a network, if it does.
    pub fn parse(parameters: &str) -> Option<Self> {
        Some(Self {
            settings: Settings::parse(parameters)?,
            deadline: Instant::now() + PATIENCE,
        })
    }

    /// Brings it up, or gives up. `None`: try again after [`POLL`].
    pub fn advance(&self) -> Option<io::Result<()>> {
        match found(self.settings.mac.as_deref()) {
            Some(interface) => Some(self.settings.apply(&interface)),
            None if Instant::now() < self.deadline => {
                self.settings.mac.as_deref().map(let_go_of_others);
                None
            }
            None => Some(Err(io::Error::other("there is no adapter"))),
        }
    }
}

/// Has the driver let go of the adapter of the machine that was saved: the host then puts in the one with
/// this address. What the driver has begun with the old one is done first.
fn let_go_of_others(mac: &str) {
    for path in fs::read_dir(INTERFACES).into_iter().flatten().flatten() {
        let path = path.path();
        let driver = fs::read_link(path.join("device/driver")).unwrap_or_default();
        // An interface that is being registered has no address yet: it may be the one.
        if driver.ends_with(DRIVER)
            && fs::read_to_string(path.join("address")).is_ok_and(|text| text.trim() != mac)
            && let Ok(device) = fs::read_link(path.join("device"))
            && let Some(name) = device.file_name()
        {
            // Without success it has let go by itself, or the host takes the adapter away.
            let _ = fs::write(path.join("device/driver/unbind"), name.as_encoded_bytes());
        }
    }
}

fn found(mac: Option<&str>) -> Option<PathBuf> {
    let mut paths = fs::read_dir(INTERFACES).ok()?.flatten().map(|e| e.path());
    paths.find(|path| match mac {
        Some(mac) => fs::read_to_string(path.join("address")).is_ok_and(|text| text.trim() == mac),
        None => path.ends_with(USUAL),
    })
}

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const ERROR: u16 = 2;
const REQUEST_AND_ACKNOWLEDGE: u16 = 0x5;
const CREATE: u16 = 0x400;
const HEADER: usize = 16;

const INET: u8 = 2;
const UP: u32 = 1;
const LINK_MTU: u16 = 4;
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const OUTPUT_INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const SCOPE_UNIVERSE: u8 = 0;
const TYPE_UNICAST: u8 = 1;

/// A conversation with the kernel about links, addresses and routes.
struct Route {
    socket: OwnedFd,
    sequence: u32,
}

impl Route {
    fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    fn up(&mut self, index: u32) -> io::Result<()> {
        self.ask(NEW_LINK, &link(index, UP), &[])
    }

    fn mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.ask(NEW_LINK, &link(index, 0), &[(LINK_MTU, mtu.to_ne_bytes())])
    }

    fn address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut body = vec![INET, prefix, 0, SCOPE_UNIVERSE];
        body.extend(index.to_ne_bytes());
        let octets = address.octets();
        self.ask(NEW_ADDRESS, &body, &[(LOCAL, octets), (ADDRESS, octets)])
    }

    fn gateway(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut body = vec![
            INET,
            0,
            0,
            0,
            TABLE_MAIN,
            PROTOCOL_BOOT,
            SCOPE_UNIVERSE,
            TYPE_UNICAST,
        ];
        body.extend([0; 4]);
        self.ask(
            NEW_ROUTE,
            &body,
            &[
                (GATEWAY, gateway.octets()),
                (OUTPUT_INTERFACE, index.to_ne_bytes()),
            ],
        )
    }

    /// One request, and the kernel's answer to it.
    fn ask(&mut self, kind: u16, body: &[u8], attributes: &[(u16, [u8; 4])]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = body.to_vec();
        for (name, value) in attributes {
            message.extend(8u16.to_ne_bytes());
            message.extend(name.to_ne_bytes());
            message.extend(value);
        }
        let flags = REQUEST_AND_ACKNOWLEDGE | if kind == NEW_LINK { 0 } else { CREATE };
        let mut packet = ((HEADER + message.len()) as u32).to_ne_bytes().to_vec();
        packet.extend(kind.to_ne_bytes());
        packet.extend(flags.to_ne_bytes());
        packet.extend(self.sequence.to_ne_bytes());
        packet.extend([0; 4]);
        packet.extend(message);
        send(self.socket.as_raw_fd(), &packet, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let size = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        acknowledged(&answer[..size])
    }
}

fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

/// An acknowledgement is an error message with error 0.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::other("the kernel's answer is no acknowledgement");
    let kind = answer.get(4..6).ok_or_else(malformed)?;
    let error = answer.get(HEADER..HEADER + 4).ok_or_else(malformed)?;
    if kind != ERROR.to_ne_bytes() {
        return Err(malformed());
    }
    match i32::from_ne_bytes(error.try_into().map_err(io::Error::other)?) {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(-number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_from_the_command_line() {
        let line = "quiet teuthis.net=10.126.7.2/24,mac=02:00:00:00:00:01,mtu=65520,gateway=10.126.7.1,dns=192.0.2.1,\
                    dns=192.0.2.2 panic=-1\n";
        let settings = Settings::parse(line).expect("settings");
        assert_eq!(settings.address, Ipv4Addr::new(10, 126, 7, 2));
        assert_eq!(settings.prefix, 24);
        assert_eq!(settings.mac.as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(settings.mtu, Some(65520));
        assert_eq!(settings.gateway, Some(Ipv4Addr::new(10, 126, 7, 1)));
        assert_eq!(
            settings.resolver(),
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\n"
        );
        let short = Settings::parse("teuthis.net=10.0.0.1/8").expect("settings");
        assert_eq!((short.prefix, short.mtu, short.gateway), (8, None, None));
    }

    #[test]
    fn what_is_no_setting_is_none() {
        for line in [
            "",
            "quiet",
            "teuthis.net=",
            "teuthis.net=10.0.0.1",
            "teuthis.net=10.0.0.1/33",
            "teuthis.net=10.0.0.256/24",
            "teuthis.net=10.0.0.1/24,mtu=x",
            "teuthis.net=10.0.0.1/24,other=1",
            "teuthis.net=10.0.0.1/24,mtu",
        ] {
            assert_eq!(Settings::parse(line), None, "{line}");
        }
    }

    #[test]
    fn an_error_of_the_kernel_is_an_error() {
        let mut answer = vec![0; 36];
        answer[4] = 2;
        acknowledged(&answer).expect("acknowledged");
        answer[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        assert_eq!(
            acknowledged(&answer).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert!(acknowledged(&answer[..17]).is_err());
        answer[4] = 3;
        assert!(acknowledged(&answer).is_err());
    }
}
