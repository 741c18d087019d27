//! What the daemon and the probe inside a guest say to each other, and the patterns the probe writes.
//!
//! One JSON object a line, both ways, over the virtio-serial port [`PORT_NAME`]. A [`Call`] carries an id, its
//! [`Reply`] the same id; replies may come in another order. A line that is no call is answered with `id: null` and
//! changes nothing, so that the rest of a line cut by a reconnect does no harm. Both sides take unknown fields.
//!
//! The patterns are here, and not in the probe alone, so that a test on the host can find a page of the probe in a
//! guest's RAM from outside and damage it: the first 16 bytes of page `p` are [`page_marker`]`(seed, p)`.
//!
//! What may not happen here: I/O.

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port of the probe.
pub const PORT_NAME: &str = "org.vtmesh.probe.0";
/// Generation of this protocol. A probe answers calls of its own generation; additive changes do not count it up.
pub const PROBE_VERSION: u32 = 1;
/// How a refusal begins that says only that too much is asked at once.
pub const BUSY: &str = "busy";
/// Longest line either side takes, in bytes, newline included.
pub const LINE_MAX: usize = 256 * 1024;
/// Size of a page of the memory probe and of a record of the disk writer, in bytes.
pub const PAGE_BYTES: usize = 4096;
/// 64-bit words in a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Most pages the memory probe takes: 4 GiB.
pub const PAGES_MAX: u32 = 1 << 20;
/// Most records the disk writer goes round: 256 MiB.
pub const SLOTS_MAX: u32 = 1 << 16;
/// Most damaged pages or records listed in one reply; the rest is counted.
pub const FINDINGS_MAX: usize = 32;
/// Most bytes of stdout and of stderr returned by `exec`.
pub const EXEC_OUTPUT_MAX: usize = 48 * 1024;
/// Where the disk writer may write on a disk of the built-in image: everything before is the disk's header.
pub const DISK_DATA_OFFSET: u64 = 1 << 20;
/// First bytes of the header of a disk that the disk writer may use.
pub const DISK_MAGIC: &[u8; 16] = b"vtmesh disk v1\n\0";

/// One line from the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the caller, unique per connection; returned in the reply.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the probe can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Who are you: answered with [`Hello`].
    Hello,
    /// Starts the memory probe; answered with [`Empty`]. Refused while one runs.
    MemStart(MemStart),
    /// Verifies every page; answered with [`MemReport`].
    MemCheck,
    /// Ends the memory probe and frees its pages; answered with [`Empty`].
    MemStop,
    /// Starts the disk writer; answered with [`DiskStarted`]. Refused while one runs.
    DiskStart(DiskStart),
    /// Reads every acknowledged record again; answered with [`DiskReport`].
    DiskCheck,
    /// Ends the disk writer; answered with [`Empty`].
    DiskStop,
    /// The clocks and the gaps seen since the last reset; answered with [`ClockReport`].
    Clock,
    /// As `Clock`, and forgets the gaps seen so far.
    ClockReset,
    /// Starts the TCP and UDP echo; answered with [`NetStarted`]. Asking twice for the same port is fine.
    NetStart {
        /// Port of both, 1 to 65535.
        port: u16,
    },
    /// Runs a program to its end; answered with [`ExecReport`].
    Exec(Exec),
    /// Starts to send a [`crate::beacon::Beacon`] to everyone on the guest's network every
    /// [`crate::beacon::BEACON_EVERY_MS`]; answered with [`NetStarted`]. Asking twice for the same port is fine.
    BeaconStart {
        /// Port it is sent to, 1 to 65535.
        port: u16,
    },
}

/// Pages to keep in guest memory and to rewrite all the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemStart {
    /// Number of 4 KiB pages, 1 to [`PAGES_MAX`].
    pub pages: u32,
    /// Everything in the pages follows from it.
    pub seed: u64,
    /// How fast pages are rewritten, bytes/s; 0: not at all.
    pub rewrite_bytes_per_second: u64,
}

/// A disk to write checksummed records to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStart {
    /// Block device. It must begin with [`DISK_MAGIC`] or with 4 KiB of zeros.
    pub device: String,
    /// Where records begin, bytes, a multiple of 4096, [`DISK_DATA_OFFSET`] or more.
    pub offset: u64,
    /// Bytes used for records: 4096 to 4096 × [`SLOTS_MAX`].
    pub bytes: u64,
    /// Everything in a record follows from it and the record's number.
    pub seed: u64,
    /// Pause after each acknowledged write, ms, 0 to 60 000.
    pub interval_ms: u64,
}

/// A program to run in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments, no shell.
    pub argv: Vec<String>,
    /// After this the program is killed, ms, 1 to 600 000.
    pub timeout_ms: u64,
}

/// One line from the probe. Exactly one of `ok` and `error` is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Of the call; `None` when the line was no call.
    pub id: Option<u64>,
    /// The answer, of the type named at the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<serde_json::Value>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The answer when there is nothing to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Who the guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROBE_VERSION`] of the probe.
    pub version: u32,
    /// Changes with every boot.
    pub boot_id: String,
    /// The clocks now.
    pub clock: Clock,
    /// Addresses of the guest with prefix, loopback left out.
    pub addresses: Vec<String>,
    /// RAM the kernel sees, bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs online.
    pub cpus: u32,
    /// Kernel release.
    pub kernel: String,
    /// Process id of the probe: changes when the probe was restarted.
    pub probe_pid: u32,
}

/// The guest's clocks, ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// CLOCK_REALTIME, since the epoch.
    pub realtime_ns: u64,
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// CLOCK_BOOTTIME: the uptime.
    pub boottime_ns: u64,
}

/// Clocks, and what a thread that ticks every [`ClockReport::tick_ns`] has seen since the last reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReport {
    /// Now.
    pub clock: Clock,
    /// The wanted distance of two ticks.
    pub tick_ns: u64,
    /// Ticks seen.
    pub ticks: u64,
    /// Longest distance of two ticks by CLOCK_MONOTONIC: how long the guest stood still as far as it can know.
    pub gap_monotonic_ns: u64,
    /// Longest distance of two ticks by CLOCK_REALTIME.
    pub gap_realtime_ns: u64,
    /// Furthest that CLOCK_REALTIME went back between two ticks.
    pub back_realtime_ns: u64,
    /// Furthest that CLOCK_MONOTONIC went back between two ticks; anything but 0 is a fault.
    pub back_monotonic_ns: u64,
}

/// What is wrong with a page or a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// Whole, but of an earlier generation than the table says: an update was lost.
    Stale,
    /// Bytes differ from what was written.
    Changed,
    /// Nothing of ours is there.
    Missing,
    /// It could not be read at all.
    Unreadable,
}

/// A damaged page or record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Number of the page or of the record's place.
    pub index: u32,
    /// What is wrong.
    pub damage: Damage,
    /// Generation or sequence number that was written and acknowledged last.
    pub expected: u64,
    /// Generation or sequence number found, as far as it can be read.
    pub found: u64,
    /// First byte that differs, counted from the beginning of the page or record.
    pub offset: u32,
}

/// The state of the memory probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemReport {
    /// Of the pattern.
    pub seed: u64,
    /// Pages verified by this call: all there are.
    pub pages_checked: u32,
    /// Pages rewritten since the start.
    pub pages_rewritten: u64,
    /// Nanoseconds of CLOCK_MONOTONIC since the start.
    pub running_ns: u64,
    /// Pages ever found damaged; each counts once and is never forgotten.
    pub bad_pages: u32,
    /// The first [`FINDINGS_MAX`] of them, as they were first found.
    pub findings: Vec<Finding>,
}

/// The disk writer runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStarted {
    /// Records it goes round.
    pub slots: u32,
}

/// The state of the disk writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Of the pattern.
    pub seed: u64,
    /// Places read by this call: all that hold an acknowledged record.
    pub records_checked: u32,
    /// Number of the last acknowledged write, which is also how many there were.
    pub acknowledged: u64,
    /// Writes the kernel refused.
    pub write_errors: u64,
    /// The last refusal.
    pub last_error: Option<String>,
    /// Longest time one write took, ns.
    pub slowest_write_ns: u64,
    /// Places ever found damaged; each counts once and is never forgotten.
    pub bad_records: u32,
    /// The first [`FINDINGS_MAX`] of them, as they were first found.
    pub findings: Vec<Finding>,
}

/// The echo, or the beacon, runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStarted {
    /// Port of the TCP and the UDP echo, or the one the beacon is sent to.
    pub port: u16,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecReport {
    /// Its exit code; `None` when a signal ended it.
    pub exit: Option<i32>,
    /// It was killed because its time was over.
    pub timed_out: bool,
    /// First [`EXEC_OUTPUT_MAX`] bytes; what is no UTF-8 is replaced.
    pub stdout: String,
    /// First [`EXEC_OUTPUT_MAX`] bytes; what is no UTF-8 is replaced.
    pub stderr: String,
    /// Some output was left out.
    pub cut: bool,
}

/// A bijective mixing of 64 bits (the finaliser of splitmix64): every input bit reaches every output bit.
#[inline]
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The first 16 bytes of page `page`, the same in every generation: what to look for in a guest's RAM.
pub fn page_marker(seed: u64, page: u32) -> [u8; 16] {
    let first = mix(seed ^ 0x7674_6d65_7368_2070);
    let second = mix(first ^ (u64::from(page) + 1).wrapping_mul(GOLDEN));
    let mut marker = [0; 16];
    marker[..8].copy_from_slice(&first.to_le_bytes());
    marker[8..].copy_from_slice(&second.to_le_bytes());
    marker
}

/// The seed of the pattern of a disk writer started with `seed`: another one, so that who looks for a page of the memory
/// probe in RAM does not find a record on its way to the disk.
pub fn record_seed(seed: u64) -> u64 {
    mix(seed ^ 0x7265_636f_7264_7321)
}

/// Bytes of a page before the filling: the marker and the generation.
const HEAD_BYTES: usize = 24;
/// Places where a filling can begin in the noise. A prime, so that the fillings of two generations differ however far
/// apart they are, multiples of it excepted: the disk writer goes round a power of two of places as a rule.
const STARTS: usize = 8191;
/// Distance of the beginnings of two following generations.
const STRIDE: u64 = 4793;

/// What pages and records of one seed hold: a marker, the generation, and a filling cut out of a noise that follows
/// from the seed. Where it is cut depends on number and generation, and differs between two following generations.
///
/// Writing and checking are one copy and one comparison, fast also in an unoptimised program in an emulated guest.
#[derive(Debug)]
pub struct Pattern {
    seed: u64,
    noise: Vec<u8>,
}

impl Pattern {
    /// The pattern of a seed.
    pub fn new(seed: u64) -> Self {
        let words = (STARTS + PAGE_WORDS) as u64;
        let noise = (1..=words).flat_map(|word| mix(seed ^ word.wrapping_mul(GOLDEN)).to_le_bytes()).collect();
        Self { seed, noise }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    fn head(&self, page: u32, generation: u64) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..16].copy_from_slice(&page_marker(self.seed, page));
        head[16..].copy_from_slice(&generation.to_le_bytes());
        head
    }

    fn filling(&self, page: u32, generation: u64) -> &[u8] {
        let start = mix(u64::from(page)).wrapping_add(generation.wrapping_mul(STRIDE)) % STARTS as u64;
        let at = start as usize * 8;
        &self.noise[at..at + PAGE_BYTES - HEAD_BYTES]
    }

    /// Writes generation `generation` of page `page` into `bytes`, which is [`PAGE_BYTES`] long; else nothing happens.
    pub fn fill(&self, bytes: &mut [u8], page: u32, generation: u64) {
        if bytes.len() == PAGE_BYTES {
            bytes[..HEAD_BYTES].copy_from_slice(&self.head(page, generation));
            bytes[HEAD_BYTES..].copy_from_slice(self.filling(page, generation));
        }
    }

    /// Whether `bytes` is exactly generation `generation` of page `page`, and if not, what is wrong with it.
    pub fn check(&self, bytes: &[u8], page: u32, generation: u64) -> Option<Finding> {
        let offset = self.first_difference(bytes, page, generation)?;
        let found = bytes.get(16..HEAD_BYTES).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
        let damage = if bytes.iter().all(|byte| *byte == 0) {
            Damage::Missing
        } else if found < generation && self.first_difference(bytes, page, found).is_none() {
            Damage::Stale
        } else {
            Damage::Changed
        };
        Some(Finding { index: page, damage, expected: generation, found, offset })
    }

    fn first_difference(&self, bytes: &[u8], page: u32, generation: u64) -> Option<u32> {
        let (head, filling) = (self.head(page, generation), self.filling(page, generation));
        if bytes.len() == PAGE_BYTES && bytes[..HEAD_BYTES] == head && bytes[HEAD_BYTES..] == *filling {
            return None;
        }
        let wanted = head.iter().chain(filling);
        let at = bytes.iter().zip(wanted).position(|(found, wanted)| found != wanted).unwrap_or(bytes.len());
        Some(u32::try_from(at).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(pattern: &Pattern, number: u32, generation: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        pattern.fill(&mut bytes, number, generation);
        bytes
    }

    #[test]
    fn a_page_is_itself_and_nothing_else() {
        let pattern = Pattern::new(7);
        let bytes = page(&pattern, 3, 9);
        assert_eq!(bytes[..16], page_marker(7, 3));
        let damage = |bytes: &[u8], page, generation| pattern.check(bytes, page, generation).map(|f| f.damage);
        assert_eq!(damage(&bytes, 3, 9), None);
        assert!(Pattern::new(8).check(&bytes, 3, 9).is_some(), "another seed");
        assert_eq!(damage(&bytes, 4, 9), Some(Damage::Changed), "another page");
        assert_eq!(damage(&bytes, 3, 10), Some(Damage::Stale));
        assert_eq!(pattern.check(&bytes, 3, 10).map(|f| (f.expected, f.found, f.offset)), Some((10, 9, 16)));
        assert_eq!(damage(&bytes, 3, 8), Some(Damage::Changed), "newer than acknowledged");
        assert_eq!(damage(&[0; PAGE_BYTES], 3, 9), Some(Damage::Missing));
        assert!(damage(&bytes[..100], 3, 9).is_some(), "short");
        assert!(damage(&[], 3, 9).is_some(), "empty");
    }

    #[test]
    fn every_single_bit_counts() {
        let pattern = Pattern::new(u64::MAX);
        let mut bytes = page(&pattern, 0, 1);
        for bit in 0..PAGE_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let finding = pattern.check(&bytes, 0, 1).expect("a flipped bit is found");
            assert_eq!(finding.offset as usize, bit / 8);
            assert_eq!(finding.damage, Damage::Changed);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn half_a_page_of_the_generation_before_is_found() {
        let pattern = Pattern::new(5);
        for distance in [1, 2, 1000, 1 << 13, 1 << 14, u64::from(SLOTS_MAX)] {
            for generation in 1..30 {
                let (old, new) = (page(&pattern, 6, generation), page(&pattern, 6, generation + distance));
                for sector in (512..PAGE_BYTES).step_by(512) {
                    let torn = [&new[..sector], &old[sector..]].concat();
                    assert_eq!(pattern.check(&torn, 6, generation + distance).map(|f| f.damage), Some(Damage::Changed));
                }
            }
        }
    }

    #[test]
    fn the_wire_form_is_held() {
        let call =
            Call { id: 4, request: Request::MemStart(MemStart { pages: 2, seed: 3, rewrite_bytes_per_second: 5 }) };
        let text = serde_json::to_string(&call).unwrap();
        assert_eq!(text, r#"{"id":4,"request":{"op":"mem_start","pages":2,"seed":3,"rewrite_bytes_per_second":5}}"#);
        assert_eq!(serde_json::from_str::<Call>(&text).unwrap(), call);
        let newer = r#"{"id":4,"request":{"op":"hello","more":1},"more":{}}"#;
        assert_eq!(serde_json::from_str::<Call>(newer).unwrap().request, Request::Hello);
        for garbage in ["", "{}", "[]", r#"{"id":-1,"request":{"op":"hello"}}"#, r#"{"id":1,"request":{"op":"x"}}"#] {
            assert!(serde_json::from_str::<Call>(garbage).is_err(), "{garbage}");
        }
    }
}
