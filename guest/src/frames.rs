//! Frames between host and agent: `u8 type, u8[3] zero, u32 length, payload`, little-endian.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};

use crate::{
    flows::{Flow, values},
    terminal::Size,
};

pub const HEADER_BYTES: usize = values::AGENT_HELLO_FRAME_HEADER_BYTES as usize;
const PROTOCOL_VERSION: u32 = values::AGENT_HELLO_VERSION as u32;
/// vsock port on both sides.
pub const PORT: u32 = values::AGENT_HELLO_PORT as u32;
/// Bytes that each stream may send before the other side grants more.
pub const INITIAL_CREDIT: u32 = values::AGENT_HELLO_INITIAL_CREDIT as u32;
pub const MAX_DATA_BYTES: usize = Flow::AgentStdout.max_bytes() as usize;
const MAX_USER_BYTES: usize = values::AGENT_EXEC_USER_BYTES_MAX as usize;
const RESUMED_ENTROPY_BYTES: usize = 64;
const TIME_BYTES: usize = 12;
const MAX_NEWS_BYTES: usize =
    Flow::AgentResumed.max_bytes() as usize - RESUMED_ENTROPY_BYTES - TIME_BYTES;
const MAX_ERROR_TEXT: usize = Flow::AgentError.max_bytes() as usize - 4;

/// What the host asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Exec(Exec),
    Stdin(Vec<u8>),
    StdinEof,
    Signal(u32),
    Window {
        stream: Stream,
        credit: u32,
    },
    ReadFile(PathBuf),
    WriteFile {
        mode: u32,
        path: PathBuf,
    },
    Resize(Size),
    Entropy(Vec<u8>),
    /// The machine goes on after it stood still, perhaps as one of several copies.
    Resumed {
        entropy: Vec<u8>,
        /// Time of day, since 1970.
        time: Duration,
        /// What is new about the machine, as on the kernel's command line.
        news: String,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub struct Exec {
    pub argv: Vec<OsString>,
    /// `KEY=VALUE` each.
    pub environment: Vec<OsString>,
    /// Empty: the root directory.
    pub directory: PathBuf,
    /// A name or a number, perhaps with a group (`user::find`). Empty: root.
    pub user: OsString,
    /// The program is to have a terminal, of this size.
    pub terminal: Option<Size>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What the agent answers.
#[derive(Debug)]
pub enum Reply<'a> {
    Hello,
    Started { pid: u32 },
    Output(Stream, &'a [u8]),
    Exited { code: u32 },
    Killed { signal: u32 },
    Error { errno: u32, text: &'a str },
    Window { credit: u32 },
    Done { bytes: u64 },
}

impl Reply<'_> {
    fn number(&self) -> u8 {
        (match self {
            Reply::Hello => values::AGENT_HELLO,
            Reply::Started { .. } => values::AGENT_STARTED,
            Reply::Output(Stream::Stdout, _) => values::AGENT_STDOUT,
            Reply::Output(Stream::Stderr, _) => values::AGENT_STDERR,
            Reply::Exited { .. } | Reply::Killed { .. } => values::AGENT_EXIT,
            Reply::Error { .. } => values::AGENT_ERROR,
            Reply::Window { .. } => values::AGENT_WINDOW,
            Reply::Done { .. } => values::AGENT_DONE,
        }) as u8
    }

    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([self.number(), 0, 0, 0, 0, 0, 0, 0]);
        match *self {
            Reply::Hello => out.extend(PROTOCOL_VERSION.to_le_bytes()),
            Reply::Started { pid } => out.extend(pid.to_le_bytes()),
            Reply::Output(_, bytes) => out.extend(bytes),
            Reply::Exited { code } => {
                out.extend(0u32.to_le_bytes());
                out.extend(code.to_le_bytes());
            }
            Reply::Killed { signal } => {
                out.extend(1u32.to_le_bytes());
                out.extend(signal.to_le_bytes());
            }
            Reply::Error { errno, text } => {
                out.extend(errno.to_le_bytes());
                let fits = |end: &usize| text.is_char_boundary(*end);
                let end = (0..=text.len().min(MAX_ERROR_TEXT)).rev().find(fits);
                out.extend(&text.as_bytes()[..end.unwrap_or(0)]);
            }
            Reply::Window { credit } => out.extend(credit.to_le_bytes()),
            Reply::Done { bytes } => out.extend(bytes.to_le_bytes()),
        }
        let length = (out.len() - start - HEADER_BYTES) as u32;
        out[start + 4..start + HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    }
}

/// The host broke the protocol; its connection ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Cuts a byte stream, which comes in arbitrary pieces, into requests.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// The next complete request, if all of it has arrived.
    pub fn next_request(&mut self) -> Result<Option<Request>, Malformed> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [number, 0, 0, 0, a, b, c, d] = *header else {
            return Err(Malformed);
        };
        let length = u32::from_le_bytes([a, b, c, d]);
        let flow = request_of(number).ok_or(Malformed)?;
        if u64::from(length) > flow.max_bytes() {
            return Err(Malformed);
        }
        let length = length as usize;
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let request = parse(flow, payload).ok_or(Malformed)?;
        self.buffer.drain(..HEADER_BYTES + length);
        Ok(Some(request))
    }
}

/// The request that a frame's number stands for.
fn request_of(number: u8) -> Option<Flow> {
    Some(match number.into() {
        values::AGENT_EXEC => Flow::AgentExec,
        values::AGENT_EXEC_TERMINAL => Flow::AgentExecTerminal,
        values::AGENT_RESIZE => Flow::AgentResize,
        values::AGENT_STDIN => Flow::AgentStdin,
        values::AGENT_STDIN_EOF => Flow::AgentStdinEof,
        values::AGENT_SIGNAL => Flow::AgentSignal,
        values::AGENT_CREDIT => Flow::AgentCredit,
        values::AGENT_READ_FILE => Flow::AgentReadFile,
        values::AGENT_WRITE_FILE => Flow::AgentWriteFile,
        values::AGENT_ENTROPY => Flow::AgentEntropy,
        values::AGENT_RESUMED => Flow::AgentResumed,
        _ => return None,
    })
}

fn parse(flow: Flow, payload: &[u8]) -> Option<Request> {
    let mut fields = Fields(payload);
    let request = match flow {
        Flow::AgentExec => Request::Exec(fields.exec(None)?),
        Flow::AgentExecTerminal => {
            let size = fields.size()?;
            Request::Exec(fields.exec(Some(size))?)
        }
        Flow::AgentResize => Request::Resize(fields.size()?),
        Flow::AgentStdin => Request::Stdin(fields.rest()),
        Flow::AgentStdinEof => Request::StdinEof,
        Flow::AgentSignal => Request::Signal(fields.u32()?),
        Flow::AgentCredit => Request::Window {
            stream: match fields.u32()? {
                1 => Stream::Stdout,
                2 => Stream::Stderr,
                _ => return None,
            },
            credit: fields.u32()?,
        },
        Flow::AgentReadFile => Request::ReadFile(OsString::from_vec(fields.rest()).into()),
        Flow::AgentWriteFile => Request::WriteFile {
            mode: fields.u32()?,
            path: OsString::from_vec(fields.rest()).into(),
        },
        Flow::AgentEntropy => Request::Entropy(fields.rest()),
        Flow::AgentResumed => Request::Resumed {
            entropy: fields.bytes(RESUMED_ENTROPY_BYTES)?,
            time: Duration::new(fields.u64()?, fields.nanoseconds()?),
            news: fields.news()?,
        },
        _ => return None,
    };
    fields.0.is_empty().then_some(request)
}

/// Takes fields off the front of a payload.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The rest as a text that is not too long.
    fn news(&mut self) -> Option<String> {
        let text = self.rest();
        (text.len() <= MAX_NEWS_BYTES).then(|| String::from_utf8(text).ok())?
    }

    fn exec(&mut self, terminal: Option<Size>) -> Option<Exec> {
        Some(Exec {
            argv: self.strings()?,
            environment: self.strings()?,
            directory: self.string()?.into(),
            user: self.string().filter(|user| user.len() <= MAX_USER_BYTES)?,
            terminal,
        })
    }

    fn size(&mut self) -> Option<Size> {
        Some(Size {
            rows: self.u16()?,
            columns: self.u16()?,
        })
    }

    fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_le_bytes(*bytes))
    }

    fn bytes(&mut self, length: usize) -> Option<Vec<u8>> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }

    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    fn nanoseconds(&mut self) -> Option<u32> {
        self.u32().filter(|&count| count < 1_000_000_000)
    }

    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }

    fn string(&mut self) -> Option<OsString> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(OsString::from_vec(bytes.to_vec()))
    }

    fn strings(&mut self) -> Option<Vec<OsString>> {
        // The count is not trusted for an allocation: each string takes 4 bytes at least.
        (0..self.u32()?).map(|_| self.string()).collect()
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number, 0, 0, 0];
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(payload);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Option<Request>, Malformed> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        decoder.next_request()
    }

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    fn exec() -> Vec<u8> {
        [
            &2u32.to_le_bytes()[..],
            &string("echo"),
            &string("hi"),
            &1u32.to_le_bytes(),
            &string("A=b"),
            &string("/tmp"),
            &string("app:1000"),
        ]
        .concat()
    }

    #[test]
    fn requests_come_out_however_the_stream_is_cut() {
        let stream = [
            frame(0x01, &exec()),
            frame(0x02, b"input"),
            frame(0x03, b""),
            frame(0x04, &15u32.to_le_bytes()),
            frame(0x06, &[2, 0, 0, 0, 0, 1, 0, 0]),
        ]
        .concat();
        for step in [1, 3, 7, stream.len()] {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in stream.chunks(step) {
                decoder.push(piece);
                while let Some(request) = decoder.next_request().unwrap() {
                    found.push(request);
                }
            }
            assert_eq!(
                found,
                [
                    Request::Exec(Exec {
                        argv: vec!["echo".into(), "hi".into()],
                        environment: vec!["A=b".into()],
                        directory: "/tmp".into(),
                        user: "app:1000".into(),
                        terminal: None,
                    }),
                    Request::Stdin(b"input".to_vec()),
                    Request::StdinEof,
                    Request::Signal(15),
                    Request::Window {
                        stream: Stream::Stderr,
                        credit: 256
                    },
                ]
            );
        }
    }

    #[test]
    fn every_other_request() {
        let request = |number, payload: &[u8]| decode(&frame(number, payload)).unwrap().unwrap();
        assert_eq!(request(0x07, b"/etc/x"), Request::ReadFile("/etc/x".into()));
        let write = Request::WriteFile {
            mode: 0o644,
            path: "/x".into(),
        };
        assert_eq!(request(0x08, b"\xa4\x01\0\0/x"), write);
        let size = Size {
            rows: 24,
            columns: 300,
        };
        assert_eq!(request(0x0C, &[24, 0, 44, 1]), Request::Resize(size));
        let exec = [&[24, 0, 44, 1], &exec()[..]].concat();
        match request(0x0B, &exec) {
            Request::Exec(exec) => assert_eq!(exec.terminal, Some(size)),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            request(0x0A, b"random"),
            Request::Entropy(b"random".to_vec())
        );
        let resumed = Request::Resumed {
            entropy: vec![7; 64],
            time: Duration::new(5, 6),
            news: "teuthis.disks=2".to_owned(),
        };
        let mut payload = vec![7; 64];
        payload.extend([5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0]);
        payload.extend(b"teuthis.disks=2");
        assert_eq!(request(0x0D, &payload), resumed);
    }

    #[test]
    fn malformed_frames_are_refused() {
        let exec = exec();
        let without_user = &exec[..exec.len() - 12];
        let of = |user: &str| frame(0x01, &[without_user, &string(user)].concat());
        assert!(decode(&of(&"x".repeat(MAX_USER_BYTES))).is_ok());
        for bytes in [
            of(&"x".repeat(MAX_USER_BYTES + 1)), // a user whose name is too long
            frame(0x01, without_user),           // no user at all
            frame(0x05, b""),                    // unknown
            frame(0x0D, &[0; 75]),               // cut
            frame(0x0D, &[0xFF; 76]),            // more than a second of nanoseconds
            frame(0x0D, &[0; 76 + 1025]),        // more news than there can be
            frame(0x0D, &[&[0; 76][..], &[0xFF]].concat()), // news that are no text
            frame(0x03, b"x"),                   // more than it takes
            frame(0x04, b"abc"),                 // less than it needs
            frame(0x06, &[3, 0, 0, 0, 1, 0, 0, 0]), // no such stream
            frame(0x09, &[0; 4]),                // no longer there
            frame(0x0B, &exec),                  // a terminal without a size
            frame(0x0C, &[24, 0]),               // half a size
            frame(0x01, &exec[..exec.len() - 1]), // cut short inside
            frame(0x01, &[&exec[..], b"x"].concat()), // more behind
            frame(0x01, &[0xFF; 8]),             // a count that cannot be
            vec![0x02, 1, 0, 0, 0, 0, 0, 0],     // bytes that must be zero
            vec![0x02, 0, 0, 0, 0x01, 0x40, 0, 0], // one byte too long
            vec![0x01, 0, 0, 0, 0x01, 0, 1, 0],  // one byte too long
            vec![0x02, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF],
        ] {
            assert_eq!(decode(&bytes), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn replies_are_framed() {
        let encoded = |reply: Reply| {
            let mut bytes = Vec::new();
            reply.encode(&mut bytes);
            bytes
        };
        assert_eq!(encoded(Reply::Hello), frame(0x80, &1u32.to_le_bytes()));
        assert_eq!(
            encoded(Reply::Output(Stream::Stderr, b"x")),
            frame(0x83, b"x")
        );
        assert_eq!(
            encoded(Reply::Exited { code: 3 }),
            frame(0x84, &[0, 0, 0, 0, 3, 0, 0, 0])
        );
        assert_eq!(
            encoded(Reply::Killed { signal: 9 }),
            frame(0x84, &[1, 0, 0, 0, 9, 0, 0, 0])
        );
        assert_eq!(
            encoded(Reply::Done { bytes: 1 }),
            frame(0x87, &1u64.to_le_bytes())
        );
        let long = "ä".repeat(200);
        let error = encoded(Reply::Error {
            errno: 2,
            text: &long,
        });
        assert_eq!(error.len(), HEADER_BYTES + 4 + MAX_ERROR_TEXT);
        assert!(str::from_utf8(&error[12..]).is_ok());
    }
}
