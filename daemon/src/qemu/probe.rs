//! The functional probe of the accelerator: run a guest and see what it did.
//!
//! `/dev/kvm` may open, report its version and create a VM, and still not run a guest (nested or filtered
//! virtualisation). So a boot sector is run under KVM with the CPU model our VMs would have: it enters 64-bit mode, adds
//! up the numbers to a million and writes whether the sum is right to QEMU's exit device. Only that exit code within
//! [`LIMIT`] counts; anything else means emulation, with the reason in words.
//!
//! The result holds for a boot of the kernel and a version of QEMU. It can be kept in a folder that several daemons of
//! one machine share.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};
use vt_protocol::vm::Accelerator;

use super::{command_line::default_cpu_model, process::boot_id, record::write_whole};

/// How long the boot sector may take. Real hardware needs a tenth of a second, most of it QEMU's own start.
pub const LIMIT: Duration = Duration::from_millis(2500);
/// QEMU ends with twice what is written to the exit device, plus one.
const EXIT_RIGHT: i32 = 2 * 0x2a + 1;
const EXIT_WRONG: i32 = 2 * 0x0d + 1;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What works.
    pub accelerator: Accelerator,
    /// Why it is that one, for people.
    pub reason: String,
}

/// What became of the boot sector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran and computed right.
    Ran,
    /// It ran and computed wrong.
    Wrong,
    /// QEMU ended otherwise; its last line.
    Ended(String),
    /// Nothing within the limit.
    Hung,
    /// QEMU could not be run.
    NotRun(String),
}

/// Assembled from:
///
/// ```text
///         .code16
///         .globl _start
/// _start: cli
///         xor %ax,%ax
///         mov %ax,%ds
///         mov %ax,%es
///         mov %ax,%ss
///         mov $0x7c00,%sp
///         # page tables at 0x1000..0x4000: identity map of the first 2 MiB
///         cld
///         mov $0x1000,%di
///         mov %di,%bx
///         xor %eax,%eax
///         mov $0xc00,%cx
///         rep stosl
///         movl $0x2003,0x1000
///         movl $0x3003,0x2000
///         movl $0x83,0x3000
///         mov %cr4,%eax
///         or $0x20,%eax
///         mov %eax,%cr4
///         mov $0x1000,%eax
///         mov %eax,%cr3
///         mov $0xc0000080,%ecx
///         rdmsr
///         or $0x100,%eax
///         wrmsr
///         lgdt gdtr
///         mov %cr0,%eax
///         or $0x80000001,%eax
///         mov %eax,%cr0
///         ljmp $8,$long
///         .code64
/// long:   xor %eax,%eax
///         mov $1000000,%ecx
/// 1:      add %rcx,%rax
///         loop 1b
///         # sum 1..1000000 = 500000500000 = 0x746a5a2920
///         movabs $0x746a5a2920,%rdx
///         cmp %rdx,%rax
///         mov $0x2a,%al
///         je 2f
///         mov $0x0d,%al
/// 2:      mov $0xf4,%dx
///         out %al,(%dx)
/// 3:      hlt
///         jmp 3b
///         .align 8
/// gdt:    .quad 0
///         .quad 0x00209a0000000000
/// gdtr:   .word 15
///         .long gdt
///         .org 510
///         .word 0xaa55
/// ```
#[rustfmt::skip]
const CODE: &[u8] = &[
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfc, 0xbf, 0x00, 0x10,
    0x89, 0xfb, 0x66, 0x31, 0xc0, 0xb9, 0x00, 0x0c, 0x66, 0xf3, 0xab, 0x66, 0xc7, 0x06, 0x00, 0x10,
    0x03, 0x20, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0x00, 0x00, 0x66, 0xc7, 0x06,
    0x00, 0x30, 0x83, 0x00, 0x00, 0x00, 0x0f, 0x20, 0xe0, 0x66, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0,
    0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f,
    0x32, 0x66, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30, 0x0f, 0x01, 0x16, 0xa8, 0x7c, 0x0f, 0x20,
    0xc0, 0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, 0xea, 0x6f, 0x7c, 0x08, 0x00, 0x31,
    0xc0, 0xb9, 0x40, 0x42, 0x0f, 0x00, 0x48, 0x01, 0xc8, 0xe2, 0xfb, 0x48, 0xba, 0x20, 0x29, 0x5a,
    0x6a, 0x74, 0x00, 0x00, 0x00, 0x48, 0x39, 0xd0, 0xb0, 0x2a, 0x74, 0x02, 0xb0, 0x0d, 0x66, 0xba,
    0xf4, 0x00, 0xee, 0xf4, 0xeb, 0xfd, 0x66, 0x90, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00, 0x0f, 0x00, 0x98, 0x7c,
];

fn boot_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..CODE.len()].copy_from_slice(CODE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Runs the boot sector in `qemu` under `accelerator`.
pub async fn run(qemu: &Path, accelerator: Accelerator, limit: Duration) -> Outcome {
    match try_run(qemu, accelerator, limit).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome::NotRun(error.to_string()),
    }
}

async fn try_run(qemu: &Path, accelerator: Accelerator, limit: Duration) -> io::Result<Outcome> {
    let disk = BootDisk::write()?;
    let mut child = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "pc", "-m", "16"])
        .args(["-accel", if accelerator == Accelerator::Kvm { "kvm" } else { "tcg" }])
        .args(["-cpu", default_cpu_model(accelerator)])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .arg("-drive")
        .arg(format!("format=raw,if=ide,file={}", disk.path.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut words = Vec::new();
    let stderr = child.stderr.take();
    let watched = timeout(limit, async {
        if let Some(stderr) = stderr {
            // To its end, so that QEMU never waits for us; only the first part is kept.
            let mut stderr = stderr.take(64 * 1024);
            stderr.read_to_end(&mut words).await?;
        }
        child.wait().await
    });
    let status = match watched.await {
        Ok(status) => status?,
        Err(_) => {
            child.kill().await?;
            return Ok(Outcome::Hung);
        }
    };
    Ok(match status.code() {
        Some(EXIT_RIGHT) => Outcome::Ran,
        Some(EXIT_WRONG) => Outcome::Wrong,
        _ => {
            let text = String::from_utf8_lossy(&words);
            // The first error says more than what follows from it.
            let line = text.lines().find(|line| line.contains("error") || line.contains("ould not"));
            let line = line.or_else(|| text.lines().last()).unwrap_or("no word on stderr");
            Outcome::Ended(format!("{status}: {}", line.chars().take(200).collect::<String>()))
        }
    })
}

/// Finds out which accelerator runs guests.
pub async fn probe(qemu: &Path) -> Probe {
    let tcg = |reason: String| Probe { accelerator: Accelerator::Tcg, reason };
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return tcg(format!("/dev/kvm cannot be opened ({error}): emulation"));
    }
    let limit_s = LIMIT.as_secs_f32();
    match run(qemu, Accelerator::Kvm, LIMIT).await {
        Outcome::Ran => Probe { accelerator: Accelerator::Kvm, reason: "a guest ran under KVM".to_owned() },
        Outcome::Wrong => tcg("a guest under KVM computed wrong: emulation".to_owned()),
        Outcome::Hung => tcg(format!("/dev/kvm is there, but a guest did not run within {limit_s} s: emulation")),
        Outcome::Ended(words) => tcg(format!("/dev/kvm is there, but QEMU cannot run a guest ({words}): emulation")),
        Outcome::NotRun(words) => tcg(format!("QEMU cannot be run ({words}): emulation")),
    }
}

/// As [`probe`], with the result kept in `folder` for this boot and this QEMU.
pub async fn probe_cached(qemu: &Path, version: &str, folder: &Path) -> Probe {
    let file = folder.join(cache_name(qemu, version));
    if let Some(known) = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return known;
    }
    let found = probe(qemu).await;
    let kept = fs::create_dir_all(folder)
        .and_then(|()| write_whole(&file, &serde_json::to_vec(&found).map_err(io::Error::other)?));
    if let Err(error) = kept {
        tracing::debug!(%error, "result of the accelerator probe is not kept");
    }
    found
}

fn cache_name(qemu: &Path, version: &str) -> String {
    let digest = blake3::hash(format!("{}\0{version}\0{}", qemu.display(), boot_id()).as_bytes()).to_hex();
    format!("accelerator-{}.json", &digest[..16])
}

/// The boot sector in a file that is removed again.
struct BootDisk {
    path: PathBuf,
}

impl BootDisk {
    fn write() -> io::Result<Self> {
        let name = format!("vtmesh-probe-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let disk = Self { path: std::env::temp_dir().join(name) };
        io::Write::write_all(&mut fs::File::create_new(&disk.path)?, &boot_sector())?;
        Ok(disk)
    }
}

impl Drop for BootDisk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
