//! Who a program runs as, said as container images do (`User`) and looked up in the guest's own files.

use std::{
    ffi::{OsStr, OsString},
    fs::OpenOptions,
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::OpenOptionsExt,
    },
};

use nix::{
    fcntl::OFlag,
    libc::uid_t,
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};

use crate::flows::values;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Of each file; what comes behind is nobody's.
const MAX_FILE_BYTES: u64 = 1 << 20;
const ROOT: uid_t = 0;

/// Anybody but root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: Uid,
    gid: Gid,
    /// `gid` among them: who is not in a group must not gain by what it forbids its members.
    groups: Vec<Gid>,
    pub home: OsString,
}

/// What the guest does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    User,
    Group,
}

impl From<Unknown> for io::Error {
    fn from(unknown: Unknown) -> Self {
        Self::from_raw_os_error(match unknown {
            Unknown::User => values::AGENT_ERROR_UNKNOWN_USER,
            Unknown::Group => values::AGENT_ERROR_UNKNOWN_GROUP,
        } as i32)
    }
}

/// What an error means, if it is one of ours.
pub fn describe(errno: i32) -> Option<&'static str> {
    match errno as u64 {
        values::AGENT_ERROR_UNKNOWN_USER => Some("no such user"),
        values::AGENT_ERROR_UNKNOWN_GROUP => Some("no such group"),
        _ => None,
    }
}

/// The user of this name or number, with a group behind a colon if it is to be another than theirs.
/// None: root, who needs no files.
pub fn find(wanted: &OsStr) -> Result<Option<User>, Unknown> {
    match wanted.as_bytes() {
        b"" | b"root" | b"0" => Ok(None),
        wanted => User::among(wanted, &read(PASSWD), &read(GROUP)).map(Some),
    }
}

/// What a file holds; nothing if it is no file, as in images without users.
fn read(path: &str) -> Vec<u8> {
    let mut content = Vec::new();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits()) // a FIFO must not stop the agent
        .open(path);
    if let Ok(file) = file
        && file.metadata().is_ok_and(|found| found.is_file())
        && file.take(MAX_FILE_BYTES).read_to_end(&mut content).is_err()
    {
        content.clear();
    }
    content
}

impl User {
    fn among(wanted: &[u8], passwd: &[u8], group: &[u8]) -> Result<Self, Unknown> {
        let mut words = wanted.splitn(2, |&byte| byte == b':');
        let name = words.next().filter(|name| !name.is_empty());
        let name = name.unwrap_or(b"0");
        let group_name = words.next().filter(|name| !name.is_empty());

        // A number is one, also where somebody has it for a name.
        let wanted_uid = number(name);
        let account = accounts(passwd).find(|account| match wanted_uid {
            Some(uid) => account.uid == uid,
            None => account.name == name,
        });
        let uid = match &account {
            Some(account) => account.uid,
            None if name == b"root" => ROOT,
            None => wanted_uid.ok_or(Unknown::User)?,
        };
        let own_gid = account.as_ref().map_or(ROOT, |account| account.gid);
        let (gid, others) = match (group_name, &account) {
            (Some(name), _) => (gid(name, group).ok_or(Unknown::Group)?, vec![]),
            (None, Some(account)) => (own_gid, memberships(account.name, group)),
            (None, None) => (own_gid, vec![]),
        };
        let mut groups = vec![gid];
        groups.extend(others.into_iter().filter(|&other| other != gid));
        let home = match account.map(|account| account.home) {
            Some(home) if !home.is_empty() => home,
            _ if uid == ROOT => b"/root",
            _ => b"/",
        };
        Ok(Self {
            uid: uid.into(),
            gid: gid.into(),
            groups: groups.into_iter().map(Gid::from).collect(),
            home: OsString::from_vec(home.to_vec()),
        })
    }

    /// Becomes this user for good. In this order: each step needs a right that the next may end.
    pub fn assume(&self) -> nix::Result<()> {
        setgroups(&self.groups)?;
        setgid(self.gid)?;
        setuid(self.uid)
    }
}

/// A line of /etc/passwd.
struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|fields| match fields[..] {
        [name, _, uid, gid, _, home, ..] => Some(Account {
            name,
            uid: number(uid)?,
            gid: number(gid)?,
            home,
        }),
        _ => None,
    })
}

/// The groups that name this user as a member.
fn memberships(user: &[u8], group: &[u8]) -> Vec<u32> {
    let of_line = |fields: Vec<&[u8]>| match fields[..] {
        [_, _, gid, members, ..] => members
            .split(|&byte| byte == b',')
            .any(|member| member == user)
            .then(|| number(gid))?,
        _ => None,
    };
    lines(group).filter_map(of_line).collect()
}

fn gid(wanted: &[u8], group: &[u8]) -> Option<u32> {
    let of_line = |fields: Vec<&[u8]>| match fields[..] {
        [name, _, gid, ..] if name == wanted => number(gid),
        _ => None,
    };
    number(wanted).or_else(|| lines(group).find_map(of_line))
}

fn lines(content: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = content.split(|&byte| byte == b'\n');
    lines.map(|line| line.trim_ascii().split(|&byte| byte == b':').collect())
}

/// A user or group id: no sign, and none of those that mean "nobody" to the kernel.
fn number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = str::from_utf8(text).ok()?.parse().ok()?;
    i32::try_from(number).is_ok().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        app:x:1000:1001:An app:/srv/app:/bin/sh\n\
        twin:x:1000:1002::/srv/twin:\n\
        7:x:1007:1007::/srv/seven:\n\
        homeless:x:1003:1003:::\n\
        lies:x:-1:0::/:\n\
        lies:x:4294967295:0::/:\n\
        short:x:5\n\
        lies:x::0::/:\n";
    const GROUP: &[u8] = b"root:x:0:\napp:x:1001:\nvideo:x:44:other,app\naudio:x:29:app\n\
        app2:x:1001:app\nbroken:x:-1:app\nfar:x:77:xapp,appx\nshort:x:9\nnone\n";

    fn user(uid: u32, groups: &[u32], home: &str) -> Result<User, Unknown> {
        Ok(User {
            uid: uid.into(),
            gid: groups[0].into(),
            groups: groups.iter().map(|&gid| gid.into()).collect(),
            home: home.into(),
        })
    }

    #[test]
    fn names_and_numbers() {
        let among = |wanted: &[u8]| User::among(wanted, PASSWD, GROUP);
        let app = user(1000, &[1001, 44, 29], "/srv/app");
        assert_eq!(among(b"app"), app);
        assert_eq!(among(b"1000"), app); // the first of two
        assert_eq!(among(b"001000"), app);
        assert_eq!(among(b"app:"), app);
        assert_eq!(among(b"app:video"), user(1000, &[44], "/srv/app"));
        assert_eq!(among(b"app:29"), user(1000, &[29], "/srv/app"));
        assert_eq!(among(b"app:12345"), user(1000, &[12345], "/srv/app"));
        assert_eq!(among(b"twin"), user(1000, &[1002], "/srv/twin"));
        assert_eq!(among(b"homeless"), user(1003, &[1003], "/"));
        assert_eq!(among(b"7"), user(7, &[0], "/")); // not the one of this name
        assert_eq!(among(b"65534"), user(65534, &[0], "/"));
        assert_eq!(among(b"65534:65533"), user(65534, &[65533], "/"));
        assert_eq!(among(b":video"), user(0, &[44], "/root"));
        assert_eq!(among(b"root:root"), user(0, &[0], "/root"));
        assert_eq!(among(b"2147483647"), user(2147483647, &[0], "/"));
    }

    #[test]
    fn what_is_not_there() {
        for wanted in [
            &b"nobody"[..],
            b"App",
            b"app ",
            b"lies",
            b"short",
            b"-1",
            b"+1",
            b"0x0",
            b"4294967295",
            b"4294967296",
            b"2147483648",
            b"99999999999999999999",
            b"\xff\xfe",
            b"root\0",
            b"nobody:root",
        ] {
            let found = User::among(wanted, PASSWD, GROUP);
            assert_eq!(found, Err(Unknown::User), "{wanted:?}");
        }
        for wanted in [
            &b"app:nobody"[..],
            b"app:-1",
            b"app:broken",
            b"app:4294967295",
            b"app:root:root",
            b"1000:none",
        ] {
            let found = User::among(wanted, PASSWD, GROUP);
            assert_eq!(found, Err(Unknown::Group), "{wanted:?}");
        }
    }

    #[test]
    fn an_image_without_users_has_numbers_and_root() {
        assert_eq!(User::among(b"5:6", b"", b""), user(5, &[6], "/"));
        assert_eq!(User::among(b"root:0", b"", b""), user(0, &[0], "/root"));
        assert_eq!(User::among(b"app", b"", b""), Err(Unknown::User));
        assert_eq!(User::among(b"5:app", b"", b""), Err(Unknown::Group));
        for wanted in ["", "root", "0"] {
            assert_eq!(find(OsStr::new(wanted)), Ok(None));
        }
    }

    #[test]
    fn files_of_any_bytes_are_read() {
        let mut noise = 1u32;
        for _ in 0..2000 {
            let mut bytes = |alphabet: &[u8]| -> Vec<u8> {
                let next = |_| {
                    noise = noise.wrapping_mul(1664525).wrapping_add(1013904223);
                    alphabet[(noise >> 16) as usize % alphabet.len()]
                };
                (0..40).map(next).collect()
            };
            let (passwd, group) = (bytes(b"ab:0\n\xff, "), bytes(b"ab:0\n,"));
            let wanted = bytes(b"ab:0");
            if let Ok(user) = User::among(&wanted[..3], &passwd, &group) {
                assert_eq!(user.groups[0], user.gid);
            }
        }
    }
}
