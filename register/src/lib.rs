//! Makes Rust code from `flows.toml`, for the build scripts of the programs: none of them has a
//! second list of flows, numbers, limits or kinds of bad input.

use serde::Deserialize;
use std::{collections::BTreeMap, env, error::Error, fmt::Write, fs, path::Path};

#[derive(Deserialize)]
struct Register {
    flow: Vec<Flow>,
}

#[derive(Deserialize)]
struct Flow {
    id: String,
    max_bytes: u64,
    #[serde(default)]
    min_bytes: u64,
    number: Option<u32>,
    #[serde(default)]
    values: BTreeMap<String, u64>,
    shape: String,
    /// Kinds of bad input, in alphabetical order as in Python, and how each is answered.
    #[serde(default)]
    rejects: BTreeMap<String, String>,
}

/// Writes `flows.rs` into the build script's output directory.
pub fn generate() -> Result<(), Box<dyn Error>> {
    let path = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../flows.toml");
    println!("cargo:rerun-if-changed={}", path.display());
    let register: Register = toml::from_str(&fs::read_to_string(&path)?)?;
    let mut out = String::new();
    flows(&mut out, &register.flow)?;
    rejects(&mut out, &register.flow)?;
    values(&mut out, &register.flow)?;
    // Whoever starts the program looks for this text in its file (`teuthis.programs`).
    writeln!(
        out,
        "/// Says which register a program was made from; its `main` keeps it in the file.\n\
         pub static FINGERPRINT: [u8; 25] = *b\"teuthis-register:{:08x}\";",
        crc32(summary(&register.flow)?.as_bytes())
    )?;
    fs::write(Path::new(&env::var("OUT_DIR")?).join("flows.rs"), out)?;
    Ok(())
}

/// `intercept.port-read` as a name of Rust's: `InterceptPortRead`.
fn camel(id: &str) -> String {
    id.split(['.', '-'])
        .map(|word| {
            let (first, rest) = word.split_at(1.min(word.len()));
            first.to_uppercase() + rest
        })
        .collect()
}

fn flows(out: &mut String, flows: &[Flow]) -> Result<(), std::fmt::Error> {
    writeln!(
        out,
        "/// A flow of the register; its counters stand at its index.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n\
         #[repr(u16)]\npub enum Flow {{"
    )?;
    for flow in flows {
        writeln!(out, "/// {}\n{},", flow.shape, camel(&flow.id))?;
    }
    writeln!(
        out,
        "}}\nimpl Flow {{\n\
         pub const COUNT: usize = {};\n\
         pub const ALL: [Flow; Self::COUNT] = [",
        flows.len()
    )?;
    for flow in flows {
        writeln!(out, "Flow::{},", camel(&flow.id))?;
    }
    writeln!(out, "];")?;
    method(
        out,
        "id",
        "&'static str",
        "Name in the register.",
        flows,
        |flow| format!("{:?}", flow.id),
    )?;
    method(
        out,
        "max_bytes",
        "u64",
        "Largest size of one item, in bytes.",
        flows,
        |flow| flow.max_bytes.to_string(),
    )?;
    method(
        out,
        "min_bytes",
        "u64",
        "Smallest size of one item, in bytes.",
        flows,
        |flow| flow.min_bytes.to_string(),
    )?;
    writeln!(out, "}}")
}

fn method(
    out: &mut String,
    name: &str,
    result: &str,
    documentation: &str,
    flows: &[Flow],
    value: impl Fn(&Flow) -> String,
) -> Result<(), std::fmt::Error> {
    writeln!(
        out,
        "/// {documentation}\npub const fn {name}(self) -> {result} {{ match self {{"
    )?;
    for flow in flows {
        writeln!(out, "Flow::{} => {},", camel(&flow.id), value(flow))?;
    }
    writeln!(out, "}} }}")
}

fn rejects(out: &mut String, flows: &[Flow]) -> Result<(), std::fmt::Error> {
    writeln!(
        out,
        "/// A kind of bad input of a flow; its counter stands at its index behind those of the flows.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n\
         #[repr(u16)]\npub enum Reject {{"
    )?;
    let kinds = || {
        flows.iter().flat_map(|flow| {
            let owner = camel(&flow.id);
            let each = flow.rejects.iter();
            each.map(move |(kind, answer)| {
                (owner.clone(), owner.clone() + &camel(kind), kind, answer)
            })
        })
    };
    for (_, variant, _, answer) in kinds() {
        writeln!(out, "/// {answer}\n{variant},")?;
    }
    writeln!(
        out,
        "}}\nimpl Reject {{\npub const COUNT: usize = {};\n\
         pub const ALL: [Reject; Self::COUNT] = [",
        kinds().count()
    )?;
    for (_, variant, ..) in kinds() {
        writeln!(out, "Reject::{variant},")?;
    }
    writeln!(
        out,
        "];\n/// The flow that it is bad input of.\n\
         pub const fn flow(self) -> Flow {{ match self {{"
    )?;
    for (owner, variant, ..) in kinds() {
        writeln!(out, "Reject::{variant} => Flow::{owner},")?;
    }
    writeln!(
        out,
        "}} }}\n/// Name in the register, among those of its flow.\n\
         pub const fn kind(self) -> &'static str {{ match self {{"
    )?;
    for (_, variant, kind, _) in kinds() {
        writeln!(out, "Reject::{variant} => {kind:?},")?;
    }
    writeln!(out, "}} }}\n}}")
}

fn values(out: &mut String, flows: &[Flow]) -> Result<(), std::fmt::Error> {
    writeln!(
        out,
        "/// Operation codes and further constants, by flow.\npub mod values {{"
    )?;
    for flow in flows {
        let name = flow.id.replace(['.', '-'], "_").to_uppercase();
        if let Some(number) = flow.number {
            writeln!(out, "pub const {name}: u32 = {number:#x};")?;
        }
        for (key, value) in &flow.values {
            let key = key.to_uppercase();
            writeln!(out, "pub const {name}_{key}: u64 = {value:#x};")?;
        }
    }
    writeln!(out, "}}")
}

/// All that programs take from the register, as Python's side writes it too: a line for each flow.
fn summary(flows: &[Flow]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for flow in flows {
        write!(text, "{} {} {}", flow.id, flow.min_bytes, flow.max_bytes)?;
        if let Some(number) = flow.number {
            write!(text, " number={number}")?;
        }
        for (key, value) in &flow.values {
            write!(text, " {key}={value}")?;
        }
        for kind in flow.rejects.keys() {
            write!(text, " {kind}")?;
        }
        text.push('\n');
    }
    Ok(text)
}

/// The checksum of zip and gzip.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            sum >> 1 ^ if sum & 1 != 0 { 0xEDB8_8320 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn names_become_rusts() {
        assert_eq!(camel("link.deliver-message"), "LinkDeliverMessage");
    }
}
