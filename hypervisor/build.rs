//! Makes `flows.rs` from `flows.toml`: the Rust side has no second list of flows, numbers or limits.

use serde::Deserialize;
use std::{collections::BTreeMap, env, error::Error, fmt::Write, fs, path::Path};

#[derive(Deserialize)]
struct Register {
    version: u32,
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
}

fn camel(id: &str) -> String {
    id.split(['.', '-'])
        .map(|word| {
            let (first, rest) = word.split_at(1.min(word.len()));
            first.to_uppercase() + rest
        })
        .collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../flows.toml");
    println!("cargo:rerun-if-changed={}", path.display());
    let register: Register = toml::from_str(&fs::read_to_string(&path)?)?;
    let flows = &register.flow;

    let mut out = String::new();
    writeln!(
        out,
        "pub const REGISTER_VERSION: u32 = {};",
        register.version
    )?;
    writeln!(
        out,
        "/// A flow of the register; its counters stand at its index."
    )?;
    writeln!(
        out,
        "#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]"
    )?;
    writeln!(out, "#[repr(u16)]\npub enum Flow {{")?;
    for flow in flows {
        writeln!(out, "    /// {}\n    {},", flow.shape, camel(&flow.id))?;
    }
    writeln!(out, "}}\nimpl Flow {{")?;
    writeln!(out, "    pub const COUNT: usize = {};", flows.len())?;
    writeln!(out, "    pub const ALL: [Flow; Self::COUNT] = [")?;
    for flow in flows {
        writeln!(out, "        Flow::{},", camel(&flow.id))?;
    }
    writeln!(out, "    ];\n    /// Name in the register.")?;
    writeln!(
        out,
        "    pub const fn id(self) -> &'static str {{ match self {{"
    )?;
    for flow in flows {
        writeln!(out, "        Flow::{} => {:?},", camel(&flow.id), flow.id)?;
    }
    writeln!(
        out,
        "    }} }}\n    /// Largest size of one item, in bytes."
    )?;
    writeln!(
        out,
        "    pub const fn max_bytes(self) -> u64 {{ match self {{"
    )?;
    for flow in flows {
        writeln!(
            out,
            "        Flow::{} => {},",
            camel(&flow.id),
            flow.max_bytes
        )?;
    }
    writeln!(
        out,
        "    }} }}\n    /// Smallest size of one item, in bytes."
    )?;
    writeln!(
        out,
        "    pub const fn min_bytes(self) -> u64 {{ match self {{"
    )?;
    for flow in flows.iter().filter(|flow| flow.min_bytes > 0) {
        writeln!(
            out,
            "        Flow::{} => {},",
            camel(&flow.id),
            flow.min_bytes
        )?;
    }
    writeln!(out, "        _ => 0,\n    }} }}\n}}")?;
    writeln!(
        out,
        "/// Operation codes and further constants, by flow.\npub mod values {{"
    )?;
    for flow in flows {
        let name = flow.id.replace(['.', '-'], "_").to_uppercase();
        if let Some(number) = flow.number {
            writeln!(out, "    pub const {name}: u32 = {number:#x};")?;
        }
        for (key, value) in &flow.values {
            writeln!(
                out,
                "    pub const {name}_{}: u64 = {value:#x};",
                key.to_uppercase()
            )?;
        }
    }
    writeln!(out, "}}")?;
    fs::write(Path::new(&env::var("OUT_DIR")?).join("flows.rs"), out)?;
    Ok(())
}
