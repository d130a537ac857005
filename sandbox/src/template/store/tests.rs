use std::io::Write;

use super::*;
use crate::template::Shape;

/// A directory in memory.
struct Memory(PathBuf);

impl Memory {
    fn new() -> Self {
        let path = tempfile::Builder::new()
            .prefix("sealock-templates")
            .tempdir_in("/dev/shm")
            .unwrap()
            .keep();
        Self(path)
    }

    fn store(&self) -> Store {
        Store::below(&self.0)
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.join(".templates"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn key(digit: char) -> Key {
    Key::parse(&digit.to_string().repeat(64)).unwrap()
}

fn order() -> Order {
    Order {
        shape: Shape {
            memory_mib: 64,
            max_memory_mib: 64,
            max_vcpus: 1,
        },
        namespace: None,
    }
}

fn make(store: &Store, key: &Key) {
    let new = store.begin(key).unwrap();
    let (mut state, mut memory) = new.create_files().unwrap();
    state.write_all(b"the state").unwrap();
    memory.set_len(1 << 20).unwrap();
    memory.write_all(b"the memory").unwrap();
    new.publish(&order(), &state, &memory).unwrap();
}

#[test]
fn a_template_is_found_when_it_is_whole_and_not_before() {
    let directory = Memory::new();
    let store = directory.store();
    assert!(store.open(&key('a')).unwrap().is_none());
    let new = store.begin(&key('a')).unwrap();
    let (state, memory) = new.create_files().unwrap();
    assert!(store.open(&key('a')).unwrap().is_none());
    new.publish(&order(), &state, &memory).unwrap();
    let opened = store.open(&key('a')).unwrap().unwrap();
    assert_eq!((opened.key, opened.order), (key('a'), order()));
    assert!(store.open(&key('b')).unwrap().is_none());
    assert_eq!(directory.files(), [key('a').as_str()]);
}

#[test]
fn one_makes_a_template_and_nothing_is_left_of_one_given_up() {
    let directory = Memory::new();
    let store = directory.store();
    let new = store.begin(&key('a')).unwrap();
    new.create_files().unwrap();
    assert!(matches!(store.begin(&key('a')), Err(Error::BeingMade)));
    store.begin(&key('b')).unwrap();
    drop(new);
    assert_eq!(directory.files(), Vec::<String>::new());
    store.begin(&key('a')).unwrap();
}

#[test]
fn what_a_killed_maker_has_left_is_in_nobodys_way() {
    let directory = Memory::new();
    let store = directory.store();
    let mut new = store.begin(&key('a')).unwrap();
    let (mut state, _) = new.create_files().unwrap();
    state.write_all(b"half a sta").unwrap();
    let uid = Uid::take(&directory.0, 70_000..70_010).unwrap();
    let marks = || fs::read_dir(directory.0.join(".uids")).unwrap().count();
    assert_eq!(marks(), 1);
    // A process that is killed lets the lock go, and leaves the file.
    let left = directory.0.join(".uids").join(uid.get().to_string());
    drop(uid);
    fs::write(left, "").unwrap();
    // As if it had been killed: the lock is let go, the files stay.
    new.path = PathBuf::from("/nonexistent");
    drop(new);
    assert!(store.open(&key('a')).unwrap().is_none());
    assert_eq!(store.remove_all().unwrap(), 0);
    assert_eq!((directory.files(), marks()), (Vec::new(), 0));
    make(&store, &key('a'));
    assert!(store.open(&key('a')).unwrap().is_some());
}

#[test]
fn a_file_that_was_written_to_or_replaced_makes_a_template_useless() {
    type Damage = fn(&Path);
    let damages: [Damage; 5] = [
        |path| {
            fs::set_permissions(path.join(MEMORY), Permissions::from_mode(0o600)).unwrap();
            let memory = OpenOptions::new().write(true).open(path.join(MEMORY)).unwrap();
            memory.write_all_at(b"x", 4096).unwrap();
        },
        |path| {
            fs::copy(path.join(STATE), path.join("copy")).unwrap();
            fs::rename(path.join("copy"), path.join(STATE)).unwrap();
        },
        |path| fs::remove_file(path.join(MEMORY)).unwrap(),
        |path| fs::write(path.join(ABOUT), "{}").unwrap(),
        |path| {
            let text = fs::read_to_string(path.join(ABOUT)).unwrap();
            fs::write(path.join(ABOUT), text.replace("\"version\":1", "\"version\":2")).unwrap();
        },
    ];
    let directory = Memory::new();
    let store = directory.store();
    for damage in damages {
        make(&store, &key('a'));
        damage(&store.place(&key('a')));
        assert!(matches!(store.open(&key('a')), Err(Error::Damaged { .. })));
        assert!(store.remove(&key('a')).unwrap());
        assert!(!store.remove(&key('a')).unwrap());
    }
}

#[test]
fn a_list_looks_at_the_memory_itself() {
    let directory = Memory::new();
    let store = directory.store();
    make(&store, &key('a'));
    make(&store, &key('b'));
    let memory = store.place(&key('b')).join(MEMORY);
    fs::set_permissions(&memory, Permissions::from_mode(0o600)).unwrap();
    let memory = OpenOptions::new().write(true).open(memory).unwrap();
    memory.write_all_at(b"x", 4096).unwrap();
    let mut list = store.list().unwrap();
    list.sort_by(|one, other| one.key.cmp(&other.key));
    assert_eq!(list[0].about.as_ref().unwrap().order, order());
    assert!(list[0].bytes > 0);
    let error = list[1].about.as_ref().unwrap_err();
    assert!(error.contains("another checksum"), "{error}");
}

#[test]
fn the_one_used_longest_ago_makes_room() {
    let directory = Memory::new();
    let store = directory.store();
    let keys: Vec<_> = "123456789".chars().map(key).collect();
    for (age, key) in (0..).zip(&keys[..MAX_TEMPLATES]) {
        make(&store, key);
        let about = File::open(store.place(key).join(ABOUT)).unwrap();
        about
            .set_modified(SystemTime::now() - Duration::from_secs(1000 - age))
            .unwrap();
    }
    store.open(&keys[0]).unwrap().unwrap();
    make(&store, &keys[MAX_TEMPLATES]);
    assert!(store.open(&keys[0]).unwrap().is_some(), "it was used just now");
    assert!(store.open(&keys[1]).unwrap().is_none());
    assert_eq!(store.keys().unwrap().len(), MAX_TEMPLATES);
    assert_eq!(store.remove_all().unwrap(), MAX_TEMPLATES);
}

#[test]
fn what_failed_is_told_until_it_works() {
    let directory = Memory::new();
    let store = directory.store();
    drop(store.begin(&key('a')).unwrap());
    store.note_failure(&key('a'), "no luck");
    let error = store.open(&key('a')).unwrap_err();
    assert_eq!(error.to_string(), "the template could not be made: no luck");
    make(&store, &key('a'));
    assert!(store.open(&key('a')).unwrap().is_some());
    store.remove(&key('a')).unwrap();
    assert!(store.open(&key('a')).unwrap().is_none());
}
