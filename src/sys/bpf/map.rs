//! Maps.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use super::{
    MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_UPDATE_BATCH, OBJ_GET_INFO, address, address_mut, call,
    name, open, possible_cpus,
};

/// A map's kind (enum bpf_map_type, and flags).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A hash table.
    Hash,
    /// An array; keys are 32-bit indices.
    Array,
    /// An array whose values begin with a page and can be mapped ([`super::Mapping`]).
    MappedArray,
    /// An array with a value for each CPU.
    PerCpuArray,
    /// A hash table that gives up its least recently used entry when full, with lists of use for each CPU.
    LruHash,
    /// Interfaces to redirect to.
    DeviceMap,
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::Array | Self::MappedArray => 2,
            Self::PerCpuArray => 6,
            Self::LruHash => 9,
            Self::DeviceMap => 14,
        }
    }

    fn flags(self) -> u32 {
        const NO_COMMON_LRU: u32 = 1 << 1;
        const MMAPABLE: u32 = 1 << 10;
        match self {
            Self::LruHash => NO_COMMON_LRU,
            Self::MappedArray => MMAPABLE,
            _ => 0,
        }
    }
}

/// What a map is to be.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Its kind.
    pub kind: Kind,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, on one CPU.
    pub value_size: u32,
    /// Entries at most.
    pub entries: u32,
    /// Its name for `bpftool map`, of which the kernel keeps 15 letters.
    pub name: &'static str,
}

/// A map; the kernel frees it when neither a descriptor nor a program holds it.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    kind: Kind,
    entries: usize,
    key_size: usize,
    /// Of all CPUs' values together.
    value_size: usize,
}

#[repr(C)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct About {
    fd: u32,
    length: u32,
    /// The beginning of struct bpf_map_info.
    info: u64,
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

impl Map {
    /// Creates a map.
    ///
    /// # Errors
    /// EPERM without CAP_BPF (or CAP_SYS_ADMIN), ENOMEM or E2BIG when it is too large.
    pub fn create(spec: &Spec) -> io::Result<Self> {
        let mut attributes = Create {
            kind: spec.kind.number(),
            key_size: spec.key_size,
            value_size: spec.value_size,
            entries: spec.entries,
            flags: spec.kind.flags(),
            inner_map: 0,
            numa_node: 0,
            name: name(spec.name),
        };
        let per_cpu = spec.kind == Kind::PerCpuArray;
        let value_size = spec.value_size as usize;
        let value_size =
            if per_cpu { value_size.next_multiple_of(8) * possible_cpus()? } else { value_size };
        let fd = open(MAP_CREATE, &mut attributes)?;
        let (kind, entries) = (spec.kind, spec.entries as usize);
        Ok(Self { fd, kind, entries, key_size: spec.key_size as usize, value_size })
    }

    /// Takes over another process's map; EINVAL when it is not as `spec` says, which may leave the number of entries
    /// open (0).
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn adopt(fd: OwnedFd, spec: &Spec) -> io::Result<Self> {
        let mut info = [0_u32; 6];
        let mut attributes = About {
            fd: fd.as_raw_fd().cast_unsigned(),
            length: u32::try_from(size_of_val(&info)).unwrap_or_default(),
            info: address_mut(&mut info),
        };
        call(OBJ_GET_INFO, &mut attributes)?;
        let [number, _, key_size, value_size, entries, flags] = info;
        let kind = spec.kind;
        expect([kind.number(), kind.flags()] == [number, flags])?;
        expect([spec.key_size, spec.value_size] == [key_size, value_size])?;
        expect(spec.entries == 0 || spec.entries == entries)?;
        expect(kind != Kind::PerCpuArray)?;
        let [entries, key_size, value_size] = [entries, key_size, value_size].map(|n| n as usize);
        Ok(Self { fd, kind, entries, key_size, value_size })
    }

    /// Another descriptor of the map.
    ///
    /// # Errors
    /// EMFILE.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Entries at most.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes of a value; of a per-CPU map, of all CPUs' values, each a multiple of eight.
    #[must_use]
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    fn element(&self, key: &[u8]) -> io::Result<Element> {
        expect(key.len() == self.key_size)?;
        let map = self.fd.as_raw_fd().cast_unsigned();
        Ok(Element { map, padding: 0, key: address(key), value: 0, flags: 0 })
    }

    /// Reads the value of a key into `value`; false when there is none.
    ///
    /// # Errors
    /// EINVAL when key or value are not as long as the map's.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        expect(value.len() == self.value_size)?;
        let mut attributes = self.element(key)?;
        attributes.value = address_mut(value);
        found(call(MAP_LOOKUP, &mut attributes))
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// EINVAL as [`Map::lookup`], E2BIG when the map is full.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        expect(value.len() == self.value_size)?;
        let mut attributes = self.element(key)?;
        attributes.value = address(value);
        call(MAP_UPDATE, &mut attributes).map(drop)
    }

    /// Sets many entries in one call: keys and values end to end.
    ///
    /// # Errors
    /// As [`Map::update`]; what was set until then stays.
    pub fn update_batch(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.key_size;
        expect(keys.len() == count * self.key_size && values.len() == count * self.value_size)?;
        if count == 0 {
            return Ok(());
        }
        let mut attributes = self.batch(count)?;
        (attributes.keys, attributes.values) = (address(keys), address(values));
        call(MAP_UPDATE_BATCH, &mut attributes).map(drop)
    }

    fn batch(&self, count: usize) -> io::Result<Batch> {
        let count = u32::try_from(count).map_err(io::Error::other)?;
        let map = self.fd.as_raw_fd().cast_unsigned();
        let (keys, values) = (0, 0);
        Ok(Batch { from: 0, to: 0, keys, values, count, map, element_flags: 0, flags: 0 })
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn expect(holds: bool) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// ENOENT as an answer.
fn found(result: io::Result<libc::c_int>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether this process may make maps: the tests of a plain user cannot.
    fn map(kind: Kind, key_size: u32, value_size: u32, entries: u32) -> Option<Map> {
        match Map::create(&Spec { kind, key_size, value_size, entries, name: "test" }) {
            Ok(map) => Some(map),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
            Err(error) => panic!("{kind:?}: {error}"),
        }
    }

    #[test]
    fn entries_are_set_and_read() {
        let Some(map) = map(Kind::Hash, 4, 8, 2) else { return };
        let mut value = [0; 8];
        assert!(!map.lookup(b"keyA", &mut value).expect("a lookup"));
        map.update(b"keyA", b"value AA").expect("room");
        map.update(b"keyB", b"value BB").expect("room");
        let full = map.update(b"keyC", b"value CC").expect_err("full");
        assert_eq!(full.raw_os_error(), Some(libc::E2BIG));
        assert!(map.lookup(b"keyA", &mut value).expect("a lookup"));
        assert_eq!(&value, b"value AA");
        // Wrong lengths never reach the kernel, which would read past the end.
        assert!(map.lookup(b"key", &mut value).is_err() && map.update(b"keyB", b"short").is_err());
    }

    #[test]
    fn a_map_of_another_process_has_to_be_of_this_kind() {
        let Some(map) = map(Kind::LruHash, 4, 8, 64) else { return };
        map.update(b"keyA", b"value AA").expect("room");
        let share = || map.share().expect("a descriptor");
        let spec =
            Spec { kind: Kind::LruHash, key_size: 4, value_size: 8, entries: 64, name: "test" };
        let same = Map::adopt(share(), &spec).expect("as it is");
        assert!(same.lookup(b"keyA", &mut [0; 8]).expect("a lookup"));
        assert!(Map::adopt(share(), &Spec { entries: 0, ..spec }).is_ok());
        for other in [
            Spec { kind: Kind::Hash, ..spec },
            Spec { key_size: 8, ..spec },
            Spec { value_size: 4, ..spec },
            Spec { entries: 65, ..spec },
        ] {
            assert!(Map::adopt(share(), &other).is_err(), "{other:?}");
        }
        let file = std::fs::File::open("/dev/null").expect("there");
        assert!(Map::adopt(file.into(), &spec).is_err(), "no map");
    }

    #[test]
    fn batches_are_written_and_read_back() {
        for kind in [Kind::Hash, Kind::Array] {
            let Some(map) = map(kind, 4, 8, 1000) else { return };
            let keys: Vec<u8> = (0..1000_u32).flat_map(u32::to_ne_bytes).collect();
            let values: Vec<u8> = (0..1000_u64).flat_map(|n| (n * n).to_ne_bytes()).collect();
            map.update_batch(&keys, &values).expect("a batch");
            for n in 0..1000_u32 {
                let mut value = [0; 8];
                assert!(map.lookup(&n.to_ne_bytes(), &mut value).expect("a lookup"));
                let n = u64::from(n);
                assert_eq!(value, (n * n).to_ne_bytes(), "{kind:?}");
            }
        }
    }

    #[test]
    fn a_full_lru_table_takes_new_entries() {
        let Some(map) = map(Kind::LruHash, 4, 8, 64) else { return };
        for n in 0..10_000_u32 {
            map.update(&n.to_ne_bytes(), &[0; 8]).expect("an old one makes room");
        }
        assert!(map.lookup(&9999_u32.to_ne_bytes(), &mut [0; 8]).expect("a lookup"));
    }

    #[test]
    fn per_cpu_values_come_together() {
        let Some(map) = map(Kind::PerCpuArray, 4, 12, 2) else { return };
        assert_eq!(map.value_size(), 16 * possible_cpus().expect("CPUs"));
        let mut value = vec![1; map.value_size()];
        assert!(map.lookup(&1_u32.to_ne_bytes(), &mut value).expect("a lookup"));
        assert!(value.iter().all(|byte| *byte == 0));
    }
}
