//! Generates the agent's ttrpc service from its protobuf definition.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/agent.proto");
    #[cfg(feature = "agent")]
    agent::generate()?;
    Ok(())
}

#[cfg(feature = "agent")]
mod agent {
    use std::{env, error::Error, fs, path::PathBuf};

    pub fn generate() -> Result<(), Box<dyn Error>> {
        let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("agent");
        fs::create_dir_all(&out)?;
        ttrpc_codegen::Codegen::new()
            .inputs(["proto/agent.proto"])
            .include("proto")
            .rust_protobuf()
            .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(true))
            .customize(ttrpc_codegen::Customize {
                async_all: true,
                ..Default::default()
            })
            .out_dir(&out)
            .run()?;
        // `include!` takes no inner attributes, which the generator writes at the top of each file.
        for entry in fs::read_dir(&out)? {
            let path = entry?.path();
            let text: String = fs::read_to_string(&path)?
                .lines()
                .filter(|line| !line.starts_with("#!") && !line.starts_with("//!"))
                .flat_map(|line| [line, "\n"])
                .collect();
            fs::write(&path, text)?;
        }
        Ok(())
    }
}
