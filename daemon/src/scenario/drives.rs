//! Disks, CDs and floppy disks of a case: `images` beyond the first, `cdroms` and `floppies`, with their keys; and whether a
//! guest finds in disks and CDs after a move what was there before it. The kernel of the built-in guest has no driver for a
//! floppy drive: those go with the VM, and only the scenario that is about them looks into them.

use vt_protocol::{
    catalogue::ImageFormat,
    error::{ErrorCode, Report},
    ids::Name,
    params::{ParamError, Params},
    party::Failure,
    vm::{Drive, DriveContent, DriveSum},
};

use super::{
    Documented, Limit,
    journey::{ASK, Journey, SLACK, product},
    trays::sum_of,
};

const MIB: u64 = 1 << 20;
/// Largest disk that is made, bytes.
const DISK_MAX: u64 = 64 << 40;
/// Most disks, CDs and floppy disks beside the first disk.
const DRIVES_MAX: usize = 16;
/// A controller has two drives for floppy disks.
const FLOPPIES_MAX: usize = 2;
/// Length of a floppy disk that is made, bytes.
pub(super) const FLOPPY_BYTES: u64 = 1440 << 10;
/// A guest sees that much of a disk's name.
const SERIAL_MAX: usize = 20;
/// What begins the name of a folder that is put on a CD or a floppy disk.
const MEDIA: &str = "media/";

pub(super) const DRIVE_PARAMS: &[Documented] = &[
    (
        "images",
        "",
        "disks of the VM: the first is the one it boots from (image), every other one is made for the case: empty \
         (create_image_NAME=yes), or a clone of the image that image_name_NAME names",
    ),
    (
        "create_image",
        "no",
        "yes: the disk is made empty; force_create_image is the same, for nothing is left of a case",
    ),
    ("image_name", "", "image of the catalogue that a disk is a clone of; folders and endings do not count"),
    (
        "image_raw_device",
        "no",
        "yes: the disk is the LUN of the pool of kind iscsi that image_name names, as it is; what the guest writes stays there, \
         and no other VM has it meanwhile",
    ),
    ("image_format", "qcow2", "qcow2 or raw, for a disk that is made empty"),
    ("image_size", "10G", "what the guest sees of a disk that is made empty"),
    ("check_image", "no", "yes: qemu-img looks into the disks before the VM starts and after it has ended"),
    (
        "backup_image_on_check_error",
        "no",
        "yes: a disk in which damage is found after the VM has ended is kept on its host, in the folder `damaged` of its disks, and \
         the report names it",
    ),
    ("skip_cluster_leak_warn", "no", "yes: space that a disk takes and does not use is not told"),
    ("cdroms", "", "CDs of the VM, each with cdrom_NAME"),
    ("cdrom", "", "an image of the catalogue, or media/FOLDER: a CD made of a folder in the host's pool"),
    ("floppies", "", "floppy disks of the VM, at most two, each with floppy_name_NAME"),
    (
        "floppy_name",
        "",
        "an image of the catalogue, or media/FOLDER: a disk made of the files of a folder in the host's pool; without one an \
         empty disk",
    ),
    ("md5sum", "", "MD5 that the image of a disk or CD must have; md5sum_1m: of its first MiB; sha1sum: its SHA-1"),
    ("skip_hash", "no", "yes: digests of images are not compared"),
];

pub(super) const DRIVE_ALIASES: &[&str] = &["force_create_image", "md5sum_1m", "sha1sum"];

/// What is not done with disks.
pub(super) const DRIVE_LIMITS: &[Limit] = &[Limit {
    key: "image_raw_device",
    takes: |value| matches!(value, "no" | "off" | ""),
    does: "boots from an image, so that its first disk is no device (image_raw_device_NAME is for another one)",
}];

/// The disks beyond the first, the CDs and the floppy disks, in order.
pub(super) fn read(params: &Params) -> Result<Vec<Drive>, ParamError> {
    let disks = params.objects("images").into_iter().skip(1).map(|name| disk(params, name));
    let cds = params.objects("cdroms").into_iter().map(|name| cd(params, name));
    let floppies = params.objects("floppies").into_iter().map(|name| floppy(params, name).map(Some));
    let all = disks.map(|disk| disk.map(Some)).chain(cds).chain(floppies);
    let drives: Vec<Drive> = all.filter_map(Result::transpose).collect::<Result<_, _>>()?;
    if drives.len() > DRIVES_MAX {
        return Err(params.error("images", format!("at most {DRIVES_MAX} disks, CDs and floppy disks")));
    }
    if drives.iter().filter(|drive| drive.content.is_floppy()).count() > FLOPPIES_MAX {
        return Err(params.error("floppies", format!("at most {FLOPPIES_MAX} names")));
    }
    let twice = |(at, drive): (usize, &Drive)| drives[..at].iter().any(|before| before.name == drive.name);
    if drives.iter().enumerate().any(twice) {
        return Err(params.error("cdroms", "names that no disk has, nor a floppy disk"));
    }
    Ok(drives)
}

/// The images that a case needs beside the one it boots from.
pub(crate) fn images_of(params: &Params) -> Vec<Name> {
    // What cannot be read is refused elsewhere.
    let drives = read(params).unwrap_or_default();
    drives.iter().filter_map(|drive| drive.content.image().cloned()).collect()
}

/// A drive that a scenario has made for itself.
pub(super) fn made(name: Name, content: DriveContent, format: ImageFormat, bytes: u64) -> Drive {
    Drive { name, content, format, bytes, sum: None, image_digest: None }
}

fn disk(params: &Params, name: &str) -> Result<Drive, ParamError> {
    let own = params.object(name);
    let format = match own.text("image_format").map(str::trim) {
        None | Some("" | "qcow2") => ImageFormat::Qcow2,
        Some("raw") => ImageFormat::Raw,
        Some(_) => return Err(own.error("image_format", "qcow2 or raw")),
    };
    let blank = own.flag("create_image")?.unwrap_or(false) || own.flag("force_create_image")?.unwrap_or(false);
    let bytes = own.size("image_size", 1, MIB..=DISK_MAX)?.unwrap_or(10 << 30);
    let device = own.flag("image_raw_device")?.unwrap_or(false);
    let content = match named(&own, "image_name")? {
        Some(pool) if device && !blank => DriveContent::Device(pool),
        _ if device => {
            return Err(own.error("image_raw_device", "image_name with the name of a pool, and no create_image"));
        }
        _ if blank => DriveContent::Blank,
        Some(image) => DriveContent::Clone(image),
        None => return Err(params.error("images", format!("disks with create_image_{name}=yes or image_name_{name}"))),
    };
    // An overlay is always qcow2, whatever lies below it.
    let format = match content {
        DriveContent::Blank => format,
        DriveContent::Device(_) => ImageFormat::Raw,
        _ => ImageFormat::Qcow2,
    };
    Ok(Drive { name: name_of(params, "images", name)?, content, format, bytes, sum: sum(&own)?, image_digest: None })
}

/// A CD; none where its drive is to be empty.
fn cd(params: &Params, name: &str) -> Result<Option<Drive>, ParamError> {
    let own = params.object(name);
    let Some(path) = own.text("cdrom").map(str::trim).filter(|path| !path.is_empty()) else { return Ok(None) };
    let content = match path.strip_prefix(MEDIA) {
        Some(folder) => DriveContent::Folder(folder.to_owned()),
        None => DriveContent::Cd(named(&own, "cdrom")?.ok_or_else(|| own.error("cdrom", "an image or media/FOLDER"))?),
    };
    let name = name_of(params, "cdroms", name)?;
    let format = ImageFormat::Raw;
    Ok(Some(Drive { name, content, format, bytes: 0, sum: sum(&own)?, image_digest: None }))
}

fn floppy(params: &Params, name: &str) -> Result<Drive, ParamError> {
    let own = params.object(name);
    let path = own.text("floppy_name").map(str::trim).filter(|path| !path.is_empty());
    let content = match (path, path.and_then(|path| path.strip_prefix(MEDIA))) {
        (None, _) => DriveContent::Floppy(None),
        (_, Some(folder)) => DriveContent::Floppy(Some(folder.to_owned())),
        (Some(_), None) => {
            let image = named(&own, "floppy_name")?;
            DriveContent::FloppyImage(image.ok_or_else(|| own.error("floppy_name", "an image or media/FOLDER"))?)
        }
    };
    // An overlay is always qcow2.
    let format = if content.image().is_some() { ImageFormat::Qcow2 } else { ImageFormat::Raw };
    let (name, bytes) = (name_of(params, "floppies", name)?, FLOPPY_BYTES);
    Ok(Drive { name, content, format, bytes, sum: sum(&own)?, image_digest: None })
}

fn name_of(params: &Params, key: &str, name: &str) -> Result<Name, ParamError> {
    let parsed = name.parse::<Name>().ok().filter(|_| name.len() <= SERIAL_MAX);
    parsed.ok_or_else(|| params.error(key, format!("names of at most {SERIAL_MAX} of a-z 0-9 - _ .")))
}

/// The image that a path of an old configuration means: `images/rhel9-64`, `isos/linux/rhel9.iso`.
fn named(own: &Params, key: &str) -> Result<Option<Name>, ParamError> {
    let Some(path) = own.text(key).map(str::trim).filter(|path| !path.is_empty()) else { return Ok(None) };
    let file = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let stem = [".qcow2", ".raw", ".img", ".iso"].iter().find_map(|end| file.strip_suffix(end)).unwrap_or(&file);
    stem.parse().map(Some).map_err(|_| own.error(key, "the name of an image"))
}

fn sum(own: &Params) -> Result<Option<DriveSum>, ParamError> {
    if own.flag("skip_hash")?.unwrap_or(false) {
        return Ok(None);
    }
    for (key, kind, digits, first_bytes) in
        [("md5sum", "md5", 32, None), ("sha1sum", "sha1", 40, None), ("md5sum_1m", "md5", 32, Some(MIB))]
    {
        let Some(text) = own.text(key).map(str::trim).filter(|text| !text.is_empty()) else { continue };
        if text.len() != digits || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(own.error(key, format!("{digits} hexadecimal digits")));
        }
        return Ok(Some(DriveSum { kind: kind.to_owned(), digits: text.to_lowercase(), first_bytes }));
    }
    Ok(None)
}

/// How much of a drive is read, MiB.
const READ_MIB: u64 = 16;

/// Writes into every empty disk, so that there is something to be found. For the party whose host has the guest.
async fn fill(journey: &Journey<'_>) -> Result<(), Failure> {
    for disk in journey.settings.vm.drives.iter().filter(|drive| drive.content == DriveContent::Blank) {
        let write = "dd if=/dev/urandom of=$d bs=64k count=32 conv=notrunc,fsync 2>/dev/null";
        run(journey, &format!("{}; {write}", find(journey, disk)), disk).await?;
    }
    Ok(())
}

/// Compares what the guest reads from its drives now with what it read before its move. Every party calls it before and
/// after.
#[derive(Debug, Default)]
pub(super) struct Contents {
    before: Option<String>,
}

impl Contents {
    /// Before the guest leaves. Where it has no drives nothing is asked.
    pub(super) async fn before(journey: &Journey<'_>) -> Result<Self, Failure> {
        if seen(journey).next().is_none() {
            return Ok(Self::default());
        }
        let mut mine = None;
        if journey.is_here() {
            fill(journey).await?;
            mine = Some(sums(journey).await?);
        }
        let told = journey.party.exchange(&journey.named("drives"), &mine, ASK + SLACK).await?;
        Ok(Self { before: told.into_iter().find_map(|(_, sums)| sums) })
    }

    /// Where the guest has arrived.
    pub(super) async fn after(self, journey: &Journey<'_>) -> Result<(), Failure> {
        let Some(before) = self.before.filter(|_| journey.is_here()) else { return Ok(()) };
        let after = sums(journey).await?;
        if after == before {
            return Ok(());
        }
        let title = "a drive holds something else than before the move";
        Err(product(Report::new(ErrorCode::DiskDamaged, title).with("before", before).with("after", after)))
    }
}

/// The beginnings of all drives as one digest each, read from the drives and not from memory.
async fn sums(journey: &Journey<'_>) -> Result<String, Failure> {
    let mut all = Vec::new();
    for drive in seen(journey) {
        let find = find(journey, drive);
        let read = format!("dd if=$d bs=1M count={READ_MIB} 2>/dev/null | md5sum | cut -c1-32");
        let output = run(journey, &format!("echo 3 >/proc/sys/vm/drop_caches; {find}; {read}"), drive).await?;
        all.push(format!("{} {}", drive.name, sum_of(&output)));
    }
    Ok(all.join(", "))
}

/// The drives that the guest has a driver for.
fn seen<'a>(journey: &'a Journey<'_>) -> impl Iterator<Item = &'a Drive> {
    journey.settings.vm.drives.iter().filter(|drive| !drive.content.is_floppy())
}

/// Shell words that put the device of a drive into `d`.
fn find(journey: &Journey<'_>, drive: &Drive) -> String {
    if drive.content.is_cd() {
        let cds = journey.settings.vm.drives.iter().filter(|drive| drive.content.is_cd());
        let at = cds.take_while(|other| other.name != drive.name).count();
        return format!("d=/dev/sr{at}; [ -b $d ] || exit 1");
    }
    let serial = &drive.name;
    format!("f=$(grep -l '^{serial}$' /sys/block/*/serial) || exit 1; f=${{f%/serial}}; d=/dev/${{f##*/}}")
}

async fn run(journey: &Journey<'_>, script: &str, drive: &Drive) -> Result<String, Failure> {
    let (status, output) = journey.guest().run(&format!("( {script} )"), ASK).await?;
    if status == 0 {
        return Ok(output);
    }
    let title = format!("the guest cannot use its drive {}", drive.name);
    Err(product(Report::new(ErrorCode::DiskDamaged, title).with("script", script).with("output", output)))
}

#[cfg(test)]
mod tests {
    use vt_protocol::params::Origin;

    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let mut params = Params::new();
        for (key, value) in pairs {
            params.set(*key, *value, Origin { file: "-p".into(), line: 0 });
        }
        params
    }

    #[test]
    fn every_disk_but_the_first_and_every_cd_is_made_as_its_own_keys_say() {
        let digest = "AB".repeat(16);
        let drives = read(&params(&[
            ("images", "image1 stg other"),
            ("image_name", "images/base-64.qcow2"),
            ("create_image_stg", "yes"),
            ("image_size_stg", "64M"),
            ("image_format_stg", "raw"),
            ("cdroms", "cd1 cd2 empty"),
            ("cdrom_cd1", "isos/linux/Rhel9.iso"),
            ("md5sum_cd1", &digest),
            ("cdrom_cd2", "media/tools"),
        ]))
        .unwrap();
        let names: Vec<&str> = drives.iter().map(|drive| drive.name.as_str()).collect();
        assert_eq!(names, ["stg", "other", "cd1", "cd2"], "an empty drive is none");
        let [stg, other, cd1, cd2] = &drives[..] else { panic!("four") };
        assert_eq!((&stg.content, stg.format, stg.bytes), (&DriveContent::Blank, ImageFormat::Raw, 64 << 20));
        assert_eq!(other.content, DriveContent::Clone("base-64".parse().unwrap()));
        assert_eq!(cd1.content, DriveContent::Cd("rhel9".parse().unwrap()));
        assert_eq!(cd1.sum.as_ref().unwrap().digits, digest.to_lowercase());
        assert_eq!(cd2.content, DriveContent::Folder("tools".into()));
        assert!(read(&params(&[("images", "image1"), ("image_name", "images/jeos")])).unwrap().is_empty());
        let drives =
            read(&params(&[("images", "image1 lun"), ("image_raw_device_lun", "yes"), ("image_name_lun", "san-1")]))
                .unwrap();
        assert_eq!(
            (&drives[0].content, drives[0].format),
            (&DriveContent::Device("san-1".parse().unwrap()), ImageFormat::Raw)
        );
        let drives = read(&params(&[("floppies", "fl answers"), ("floppy_name_answers", "media/unattended")])).unwrap();
        assert_eq!(drives[0].content, DriveContent::Floppy(None));
        assert_eq!(drives[1].content, DriveContent::Floppy(Some("unattended".into())));
        let drives = read(&params(&[("floppies", "fl"), ("floppy_name", "images/test_floppy.img")])).unwrap();
        assert_eq!(drives[0].content, DriveContent::FloppyImage("test_floppy".parse().unwrap()));
        assert_eq!((drives[0].format, drives[0].bytes), (ImageFormat::Qcow2, 1_474_560));
    }

    #[test]
    fn what_is_said_of_one_disk_of_one_vm_on_one_host_counts_there_alone() {
        let all = params(&[
            ("vms", "vm1 vm2"),
            ("images", "image1"),
            ("images_vm2", "image1 stg"),
            ("create_image", "yes"),
            ("image_size_stg", "1G"),
            ("image_size_stg_vm2", "2G"),
            ("image_size_stg_vm2_host2", "3G"),
        ]);
        let sizes = |host: usize, vm: &str| -> Vec<u64> {
            let own = vt_protocol::params::for_host(&all, &["a", "b"], host, "").object(vm);
            read(&own).unwrap().iter().map(|drive| drive.bytes >> 30).collect()
        };
        assert_eq!((sizes(0, "vm1"), sizes(0, "vm2"), sizes(1, "vm2")), (vec![], vec![2], vec![3]));
    }

    #[test]
    fn what_cannot_be_made_is_refused_by_its_key() {
        for (pairs, key) in [
            (&[("images", "a b")][..], "images"),
            (&[("images", "a b"), ("create_image", "perhaps")], "create_image"),
            (&[("images", "a b"), ("create_image", "yes"), ("image_size", "1")], "image_size"),
            (&[("images", "a b"), ("create_image", "yes"), ("image_format", "vmdk")], "image_format"),
            (&[("images", "a B"), ("create_image", "yes")], "images"),
            (&[("images", "a b"), ("image_raw_device_b", "yes")], "image_raw_device"),
            (&[("images", "a b"), ("image_raw_device_b", "yes"), ("create_image", "yes")], "image_raw_device"),
            (&[("cdroms", "c"), ("cdrom_c", "isos/ü.iso")], "cdrom"),
            (&[("floppies", "a b c")], "floppies"),
            (&[("floppies", "a"), ("floppy_name_a", "images/ü.img")], "floppy_name"),
            (&[("cdroms", "c"), ("cdrom_c", "x"), ("md5sum_c", "12")], "md5sum"),
            (&[("images", "a b"), ("create_image", "yes"), ("cdroms", "b"), ("cdrom_b", "x")], "cdroms"),
        ] {
            assert_eq!(read(&params(pairs)).unwrap_err().key, key, "{pairs:?}");
        }
    }
}
