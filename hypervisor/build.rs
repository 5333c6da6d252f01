//! Makes `flows.rs` from `flows.toml`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    teuthis_register::generate()
}
