//! `sealock template`: the machines that pods are restored from.

use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use sealock_sandbox::{
    Config,
    size::{Host, Size},
    template::{
        Key, Order, Scope, Store,
        make::{Made, make},
        store::Listed,
    },
};
use serde_json::Value;

/// What to do with templates.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make the template for pods of a size, and wait for it
    Create {
        /// Memory at the start, in MiB (as configured if not given)
        #[arg(long)]
        memory_mib: Option<u32>,
        /// Memory it can grow to, in MiB (as configured if not given)
        #[arg(long)]
        max_memory_mib: Option<u32>,
        /// Virtual CPUs it can have (as configured if not given)
        #[arg(long)]
        max_vcpus: Option<u8>,
        /// The namespace it is for, where `templates = "namespace"`
        #[arg(long)]
        namespace: Option<String>,
    },
    /// List them, each with its memory's checksum compared
    List,
    /// Delete some, or all; running pods keep theirs
    Delete {
        /// Their names or beginnings of them, as listed
        names: Vec<String>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
}

/// Does it.
pub fn run(command: Command) -> Result<()> {
    let config = Config::load()?;
    let store = Store::below(config.state_dir());
    match command {
        Command::Create {
            memory_mib,
            max_memory_mib,
            max_vcpus,
            namespace,
        } => {
            let usual = Size::of(&Value::Null, &config, Host::this())?;
            let mut order = Order {
                shape: usual.into(),
                namespace,
            };
            match (config.templates(), &order.namespace) {
                (Scope::Off, _) => bail!("`templates` is \"off\" in Sealock's configuration"),
                (Scope::Node, Some(_)) => {
                    bail!("--namespace: `templates` is not \"namespace\" in Sealock's configuration")
                }
                (Scope::Namespace, None) => {
                    bail!("--namespace is needed: templates are not shared between namespaces")
                }
                _ => {}
            }
            let shape = &mut order.shape;
            shape.memory_mib = memory_mib.unwrap_or(shape.memory_mib);
            shape.max_memory_mib = max_memory_mib
                .unwrap_or(shape.max_memory_mib)
                .max(shape.memory_mib);
            shape.max_vcpus = max_vcpus.unwrap_or(shape.max_vcpus);
            create(&config, &order)
        }
        Command::List => {
            print!("{}", table(&store.list()?, SystemTime::now()));
            Ok(())
        }
        Command::Delete { names, all } => delete(&store, &names, all),
    }
}

fn create(config: &Config, order: &Order) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    match runtime.block_on(make(config, order))? {
        Made::New(key) => println!("{key}"),
        Made::Already(key) => println!("{key} is there already"),
    }
    Ok(())
}

fn delete(store: &Store, names: &[String], all: bool) -> Result<()> {
    if all {
        store.remove_all()?;
        return Ok(());
    }
    if names.is_empty() {
        bail!("which ones? Name some, or use --all");
    }
    let there: Vec<Key> = store.keys()?;
    for name in names {
        let meant: Vec<_> = there
            .iter()
            .filter(|key| key.as_str().starts_with(name))
            .collect();
        match meant[..] {
            [] => bail!("there is no template {name}"),
            [key] => {
                store.remove(key)?;
            }
            _ => bail!("{name} is the beginning of several names"),
        }
    }
    Ok(())
}

fn table(list: &[Listed], now: SystemTime) -> String {
    let mut text = "NAME          MEMORY  UP TO  CPUS  TAKES  LAST USED  STATE\n".to_owned();
    for Listed {
        key,
        about,
        used,
        bytes,
    } in list
    {
        let name = &key.as_str()[..12];
        let takes = bytes.div_ceil(1 << 20);
        let ago = now.duration_since(*used).map_or(0, |ago| ago.as_secs());
        text += &match about {
            Ok(about) => {
                let shape = about.order.shape;
                let of = about.order.namespace.as_ref();
                let of = of.map_or(String::new(), |namespace| format!(", for namespace {namespace}"));
                format!(
                    "{name}  {:>6}  {:>5}  {:>4}  {takes:>5}  {ago:>6} s   whole{of}\n",
                    shape.memory_mib, shape.max_memory_mib, shape.max_vcpus
                )
            }
            Err(error) => format!(
                "{name}  {:>6}  {:>5}  {:>4}  {takes:>5}  {ago:>6} s   {error}\n",
                "-", "-", "-"
            ),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_of_no_use_says_why() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let listed = Listed {
            key: Key::parse(&"0123456789abcdef".repeat(4)).unwrap(),
            about: Err("it is damaged".to_owned()),
            used: now - Duration::from_secs(60),
            bytes: (40 << 20) + 1,
        };
        let table = table(&[listed], now);
        let line = table.lines().nth(1).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[0], "0123456789ab");
        assert_eq!(words[4..7], ["41", "60", "s"]);
        assert!(line.ends_with("it is damaged"), "{line}");
    }
}
