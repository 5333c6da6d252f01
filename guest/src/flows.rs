//! The register of flows, made from `flows.toml` by the build script.

include!(concat!(env!("OUT_DIR"), "/flows.rs"));
