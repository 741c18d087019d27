//! Images on real daemons that share no storage: what is taken, what is refused, and copies from host to host that meet
//! crashes and altered bytes.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::time::Instant;
use vt_protocol::{
    admin::{AccessRole, AdminReply, AdminRequest},
    catalogue::{HostOutcome, ImageFormat, ImageRequest, ImageView, ImportImage, PlacementState, SyncImage},
    error::{ErrorCode, Report},
    ids::Name,
};

use crate::daemons::{Daemon, Daemons, PATIENCE};

pub(crate) const BLOCK: u64 = 64 << 10;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn qemu_img(words: &[&str]) {
    let ran = Command::new("qemu-img").args(words).output().unwrap();
    assert!(ran.status.success(), "qemu-img {words:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// A raw disk of `blocks` blocks, each second of which holds noise.
pub(crate) fn disk(path: &Path, blocks: u64) -> PathBuf {
    let file = File::options().write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len(blocks * BLOCK).unwrap();
    let mut rng = StdRng::seed_from_u64(blocks);
    let mut block = vec![0; BLOCK as usize];
    for index in (0..blocks).step_by(2) {
        rng.fill_bytes(&mut block);
        file.write_all_at(&block, index * BLOCK).unwrap();
    }
    path.to_owned()
}

pub(crate) fn import_of(path: &Path, image: &str) -> ImportImage {
    ImportImage { path: path.to_owned(), name: name(image), pool: None, format: None, sum: None }
}

/// The last reply of a request that is answered by many.
pub(crate) async fn ask(daemon: &Daemon, request: ImageRequest) -> Result<AdminReply, Report> {
    let mut items = daemon.stream(&AdminRequest::Image(request)).await;
    let mut last = None;
    while let Some(item) = items.next().await {
        match item {
            AdminReply::Refused(report) => return Err(report),
            AdminReply::ImageProgress(_) | AdminReply::End => {}
            reply => last = Some(reply),
        }
    }
    Ok(last.expect("there is an answer"))
}

pub(crate) async fn import(daemon: &Daemon, import: ImportImage) -> Result<Vec<String>, Report> {
    match ask(daemon, ImageRequest::Import(import)).await? {
        AdminReply::Steps(steps) => Ok(steps),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn outcomes(daemon: &Daemon, request: ImageRequest) -> Vec<HostOutcome> {
    match ask(daemon, request).await.unwrap() {
        AdminReply::Outcomes(outcomes) => outcomes,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn sync(image: &str, host: &str, rate: u64) -> ImageRequest {
    ImageRequest::Sync(SyncImage { image: name(image), hosts: vec![name(host)], rate })
}

pub(crate) async fn catalogue(daemon: &Daemon) -> Vec<ImageView> {
    match daemon.ask(&AdminRequest::Image(ImageRequest::List)).await.unwrap() {
        AdminReply::Images(images) => images,
        other => panic!("{other:?}"),
    }
}

/// Waits until a host has heard what another knows of images.
async fn heard(daemon: &Daemon, from: &Daemon) {
    let until = Instant::now() + PATIENCE;
    while catalogue(daemon).await != catalogue(from).await {
        assert!(Instant::now() < until, "it is still behind: {:?}", catalogue(daemon).await);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn placement(daemon: &Daemon, image: &str, host: &str) -> Option<PlacementState> {
    let images = catalogue(daemon).await;
    let image = images.iter().find(|known| known.name.as_str() == image)?;
    image.placements.iter().find(|copy| copy.host.as_str() == host).map(|copy| copy.state)
}

fn moved(outcome: &HostOutcome) -> u64 {
    assert_eq!(outcome.trouble, None);
    outcome.told[0].split(' ').next().unwrap().parse().unwrap_or(0)
}

pub(crate) fn pool(daemon: &Daemon) -> PathBuf {
    daemon.dir.join("images")
}

/// What lies in a pool, its own files too.
pub(crate) fn inside(daemon: &Daemon) -> Vec<String> {
    let entries = fs::read_dir(pool(daemon)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_cannot_be_an_image_is_refused_with_one_reason_and_leaves_nothing() {
    let daemons = Daemons::cluster(1).await;
    let host = &daemons.all[0];
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join(file);
    let text = |file: &str| at(file).display().to_string();
    let qcow2 = |file: &str| qemu_img(&["create", "-q", "-f", "qcow2", &text(file), "8M"]);
    let patch = |file: &str, offset: u64, bytes: &[u8]| {
        File::options().write(true).open(at(file)).unwrap().write_all_at(bytes, offset).unwrap();
    };
    qcow2("sound.qcow2");
    fs::copy(at("sound.qcow2"), at("datafile.qcow2")).unwrap();
    patch("datafile.qcow2", 79, &[4]);
    fs::copy(at("sound.qcow2"), at("corrupt.qcow2")).unwrap();
    // The L1 table leads out of the file.
    patch("corrupt.qcow2", 40, &[0, 0, 0, 0, 0x7f, 0xff, 0, 0]);
    fs::write(at("cut.qcow2"), &fs::read(at("sound.qcow2")).unwrap()[..60]).unwrap();
    fs::write(at("disk.vmdk"), b"KDMV and more").unwrap();
    fs::write(at("empty.img"), b"").unwrap();
    for (file, backing) in [("outside", "/etc/passwd"), ("missing", "nowhere.qcow2"), ("remote", "nbd://10.0.0.1/x")] {
        let file = format!("{file}.qcow2");
        qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, &text(&file), "8M"]);
    }
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "loop.qcow2", &text("loop.qcow2"), "8M"]);
    let refused = |file: &str, code, says: &'static str| (import_of(&at(file), "bad"), code, says);
    let mut wrong_sum = import_of(&at("sound.qcow2"), "bad");
    wrong_sum.sum = Some(("sha256".into(), "00".repeat(32)));
    let mut not_qcow2 = import_of(&at("disk.vmdk"), "bad");
    not_qcow2.format = Some(ImageFormat::Qcow2);
    let mut no_pool = import_of(&at("sound.qcow2"), "bad");
    no_pool.pool = Some(name("nowhere"));
    let cases = [
        refused("datafile.qcow2", ErrorCode::ImageRefused, "keeps its data in another file"),
        refused("corrupt.qcow2", ErrorCode::ImageRefused, "corrupt inside"),
        refused("cut.qcow2", ErrorCode::ImageRefused, "too short"),
        refused("disk.vmdk", ErrorCode::ImageRefused, "vmdk"),
        refused("empty.img", ErrorCode::ImageRefused, "has 0 bytes"),
        refused("absent.img", ErrorCode::ImageRefused, "cannot be read"),
        refused("outside.qcow2", ErrorCode::ImageRefused, "a file that is no image of this pool"),
        refused("missing.qcow2", ErrorCode::ImageRefused, "is not there"),
        refused("remote.qcow2", ErrorCode::ImageRefused, "no file of this pool"),
        refused("loop.qcow2", ErrorCode::ImageRefused, "built upon itself"),
        (wrong_sum, ErrorCode::ImageDamaged, "digest is another one"),
        (not_qcow2, ErrorCode::ImageRefused, "does not begin like one"),
        (no_pool, ErrorCode::UnknownPool, "no pool nowhere"),
    ];
    for (asked, code, says) in cases {
        let report = import(host, asked.clone()).await.unwrap_err();
        assert_eq!(report.code, code, "{asked:?}: {report:?}");
        assert!(report.title.contains(says), "{says}: {report:?}");
        assert_eq!(catalogue(host).await, [], "{says}");
        assert_eq!(inside(host), <[String; 0]>::default(), "{says}");
    }
    import(host, import_of(&at("sound.qcow2"), "good")).await.unwrap();
    let good = &catalogue(host).await[0];
    assert_eq!((good.format, good.virtual_bytes), (ImageFormat::Qcow2, 8 << 20));
}

#[tokio::test]
async fn an_image_upon_another_knows_it_and_is_read_through_it_on_every_host() {
    let daemons = Daemons::cluster(2).await;
    let (host1, host2) = (&daemons.all[0], &daemons.all[1]);
    let dir = tempfile::tempdir().unwrap();
    import(host1, import_of(&disk(&dir.path().join("base.raw"), 6), "base")).await.unwrap();
    let below = pool(host1).join("base/disk.raw").display().to_string();
    let layer = dir.path().join("layer.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &below, layer.to_str().unwrap()]);
    import(host1, import_of(&layer, "layer")).await.unwrap();
    let shown = catalogue(host1).await.into_iter().find(|image| image.name.as_str() == "layer").unwrap();
    assert_eq!(shown.backing, [name("base")]);
    let held = daemon_refuses(host1, ImageRequest::Delete(name("base"))).await;
    assert_eq!(held.code, ErrorCode::ImageInUse, "{held:?}");
    outcomes(host1, sync("layer", "host2", 0)).await.iter().for_each(|outcome| assert_eq!(outcome.trouble, None));
    assert_eq!(inside(host2), ["base", "layer"], "what it is built upon came first");
    let flat = dir.path().join("flat.raw");
    let there = pool(host2).join("layer/disk.qcow2").display().to_string();
    qemu_img(&["convert", "-O", "raw", &there, flat.to_str().unwrap()]);
    assert!(fs::read(flat).unwrap() == fs::read(dir.path().join("base.raw")).unwrap());
}

#[tokio::test]
async fn an_image_whose_backing_image_has_moved_or_would_be_built_upon_itself_is_one_clear_error() {
    let daemons = Daemons::cluster(2).await;
    let (host1, host2) = (&daemons.all[0], &daemons.all[1]);
    let dir = tempfile::tempdir().unwrap();
    let upon = |image: &str, disk: &str, format: &str| {
        let (below, layer) = (pool(host1).join(image).join(disk), dir.path().join(format!("upon-{image}.qcow2")));
        let (below, file) = (below.display().to_string(), layer.display().to_string());
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", format, "-b", &below, &file]);
        layer
    };
    import(host1, import_of(&disk(&dir.path().join("base.raw"), 6), "base")).await.unwrap();
    let layer = upon("base", "disk.raw", "raw");
    import(host1, import_of(&layer, "layer")).await.unwrap();
    let before = (catalogue(host1).await, inside(host1));

    let round = import(host1, import_of(&upon("layer", "disk.qcow2", "qcow2"), "base")).await.unwrap_err();
    assert_eq!(round.code, ErrorCode::ImageInUse, "{round:?}");
    assert_eq!((catalogue(host1).await, inside(host1)), before, "{round:?}");

    fs::rename(pool(host1).join("base"), dir.path().join("elsewhere")).unwrap();
    let moved = import(host1, import_of(&layer, "another")).await.unwrap_err();
    assert_eq!(moved.code, ErrorCode::ImageRefused, "{moved:?}");
    assert!(moved.title.contains("the file that it is built upon is not there"), "{moved:?}");
    let failed = outcomes(host1, sync("layer", "host2", 0)).await;
    let trouble = failed[0].trouble.as_ref().unwrap();
    assert_eq!(trouble.code, ErrorCode::NoSource, "{trouble:?}");
    assert!(trouble.title.contains("image base"), "{trouble:?}");
    assert_eq!((catalogue(host1).await.len(), inside(host1), inside(host2)), (2, vec!["layer".to_owned()], vec![]));
    let found = outcomes(host1, ImageRequest::Verify(name("base"))).await;
    assert_eq!(found[0].trouble.as_ref().unwrap().code, ErrorCode::ImageDamaged, "{found:?}");

    fs::rename(dir.path().join("elsewhere"), pool(host1).join("base")).unwrap();
    assert_eq!(outcomes(host1, ImageRequest::Verify(name("base"))).await[0].trouble, None);
    assert_eq!(outcomes(host1, sync("layer", "host2", 0)).await[0].trouble, None);
}

async fn daemon_refuses(daemon: &Daemon, request: ImageRequest) -> Report {
    ask(daemon, request).await.unwrap_err()
}

#[tokio::test]
async fn a_copy_moves_only_what_the_other_side_does_not_have() {
    let daemons = Daemons::cluster(2).await;
    let (host1, host2) = (&daemons.all[0], &daemons.all[1]);
    let dir = tempfile::tempdir().unwrap();
    let source = disk(&dir.path().join("data.raw"), 64);
    import(host1, import_of(&source, "data")).await.unwrap();
    let record = fs::metadata(pool(host1).join("data/image.json")).unwrap().len();
    let first = outcomes(host1, sync("data", "host2", 0)).await;
    assert_eq!(moved(&first[0]), 32 * BLOCK + record, "zeros do not move");
    assert!(fs::read(pool(host2).join("data/disk.raw")).unwrap() == fs::read(&source).unwrap());
    assert_eq!(placement(host2, "data", "host2").await, Some(PlacementState::Present));
    assert_eq!(outcomes(host1, sync("data", "host2", 0)).await[0].told, ["it is there"]);

    // Another version: a block is new, one is a block that was elsewhere before, one is there twice.
    let file = File::options().read(true).write(true).open(&source).unwrap();
    let mut known = vec![0; BLOCK as usize];
    file.read_exact_at(&mut known, 0).unwrap();
    file.write_all_at(&known, 5 * BLOCK).unwrap();
    file.write_all_at(&vec![7; BLOCK as usize], 9 * BLOCK).unwrap();
    file.write_all_at(&vec![7; BLOCK as usize], 11 * BLOCK).unwrap();
    import(host1, import_of(&source, "data")).await.unwrap();
    assert_eq!(placement(host1, "data", "host2").await, Some(PlacementState::Stale));
    let record = fs::metadata(pool(host1).join("data/image.json")).unwrap().len();
    let second = outcomes(host1, sync("data", "host2", 0)).await;
    assert_eq!(moved(&second[0]), BLOCK + record, "one block is new");
    assert!(fs::read(pool(host2).join("data/disk.raw")).unwrap() == fs::read(&source).unwrap());

    // A copy that was damaged is found, told, and mended with what it lacks.
    let damaged = File::options().write(true).open(pool(host2).join("data/disk.raw")).unwrap();
    damaged.write_all_at(b"flipped", 4 * BLOCK + 9).unwrap();
    let found = outcomes(host1, ImageRequest::Verify(name("data"))).await;
    assert_eq!(found[0].trouble, None);
    let trouble = found[1].trouble.as_ref().unwrap();
    assert_eq!((trouble.code, trouble.evidence[1].1.as_str()), (ErrorCode::ImageDamaged, "4"), "{trouble:?}");
    assert_eq!(placement(host1, "data", "host2").await, Some(PlacementState::Missing));
    assert_eq!(moved(&outcomes(host1, sync("data", "host2", 0)).await[0]), BLOCK);
    assert_eq!(outcomes(host1, ImageRequest::Verify(name("data"))).await[1].trouble, None);
}

#[tokio::test]
async fn a_false_block_is_never_written_and_another_source_has_the_true_one() {
    let daemons = Daemons::cluster(3).await;
    let [host1, host2, host3] = &daemons.all[..] else { panic!("three hosts") };
    let dir = tempfile::tempdir().unwrap();
    let source = disk(&dir.path().join("data.raw"), 40);
    import(host1, import_of(&source, "data")).await.unwrap();
    let rot = |host: &Daemon, block: u64| {
        let file = File::options().write(true).open(pool(host).join("data/disk.raw")).unwrap();
        file.write_all_at(b"rot", block * BLOCK).unwrap();
    };
    rot(host1, 6);
    heard(host2, host1).await;
    let failed = outcomes(host2, sync("data", "host2", 0)).await;
    let trouble = failed[0].trouble.as_ref().unwrap();
    assert_eq!(trouble.code, ErrorCode::ImageDamaged, "{trouble:?}");
    assert!(trouble.title.contains("block 6 of disk.raw from host1"), "{trouble:?}");
    assert!(!inside(host2).contains(&"data".to_owned()), "half of it has no name");
    assert_eq!(placement(host2, "data", "host2").await, Some(PlacementState::Missing));

    // Mended at the source it goes on; a third host takes each block from who has it right.
    import(host1, import_of(&source, "data")).await.unwrap();
    outcomes(host1, sync("data", "host2", 0)).await.iter().for_each(|outcome| assert_eq!(outcome.trouble, None));
    rot(host1, 6);
    rot(host2, 20);
    heard(host3, host1).await;
    let third = outcomes(host3, sync("data", "host3", 0)).await;
    // Whether both are needed depends on who was asked for which part: none of it may be false.
    match &third[0].trouble {
        None => assert!(fs::read(pool(host3).join("data/disk.raw")).unwrap() == fs::read(&source).unwrap()),
        Some(trouble) => {
            assert_eq!(trouble.code, ErrorCode::ImageDamaged, "{trouble:?}");
            assert!(!inside(host3).contains(&"data".to_owned()));
        }
    }
}

/// Has host3 of three take an image of 200 blocks of noise, and kills it in the middle. The source's file, and the bytes
/// that had arrived.
async fn killed_in_the_middle(daemons: &mut Daemons, dir: &Path) -> (PathBuf, u64) {
    let source = disk(&dir.join("data.raw"), 400);
    import(&daemons.all[0], import_of(&source, "data")).await.unwrap();
    // Slow enough to be caught.
    let mut items = daemons.all[0].stream(&AdminRequest::Image(sync("data", "host3", 4 << 20))).await;
    let half = Instant::now() + PATIENCE;
    let arrived = loop {
        match items.next().await {
            Some(AdminReply::ImageProgress(now)) if now.moved >= 40 * BLOCK => break now.moved,
            Some(AdminReply::ImageProgress(_)) => assert!(Instant::now() < half, "nothing moves"),
            other => panic!("it ended before it was half: {other:?}"),
        }
    };
    assert_eq!(placement(&daemons.all[0], "data", "host3").await, Some(PlacementState::Copying));
    daemons.all[2].kill();
    let left = inside(&daemons.all[2]);
    assert!(left.len() == 1 && left[0].starts_with(".part-data-"), "{left:?}");
    (source, arrived)
}

/// Starts the killed host, and has it take the image to the end. How many bytes moved.
async fn goes_on(daemons: &mut Daemons, source: &Path) -> u64 {
    daemons.all[2].start().await;
    daemons.settled(3).await;
    let done = outcomes(&daemons.all[0], sync("data", "host3", 0)).await;
    assert!(fs::read(pool(&daemons.all[2]).join("data/disk.raw")).unwrap() == fs::read(source).unwrap());
    assert_eq!(inside(&daemons.all[2]), ["data"]);
    moved(&done[0])
}

#[tokio::test]
async fn a_receiver_that_is_killed_goes_on_where_it_was() {
    let mut daemons = Daemons::cluster(3).await;
    let dir = tempfile::tempdir().unwrap();
    let (source, arrived) = killed_in_the_middle(&mut daemons, dir.path()).await;
    let rest = goes_on(&mut daemons, &source).await;
    assert!(rest + 20 * BLOCK < 200 * BLOCK, "{rest} bytes moved again after {arrived} had come");
}

#[tokio::test]
async fn what_a_power_cut_took_from_a_receiver_comes_again() {
    let mut daemons = Daemons::cluster(3).await;
    let dir = tempfile::tempdir().unwrap();
    let (source, _) = killed_in_the_middle(&mut daemons, dir.path()).await;
    // Of what was not on disk yet some is zeros, some is what lay there before, and the end of the file is gone.
    let part = pool(&daemons.all[2]).join(&inside(&daemons.all[2])[0]).join("disk.raw");
    let here = fs::read(&part).unwrap();
    let arrived: Vec<u64> =
        (0..400).filter(|at| here[(at * BLOCK) as usize..][..BLOCK as usize] != [0; BLOCK as usize]).collect();
    let file = File::options().write(true).open(&part).unwrap();
    for (place, block) in arrived.iter().enumerate() {
        match place % 3 {
            0 => file.write_all_at(&[0; BLOCK as usize], block * BLOCK).unwrap(),
            1 => file.write_all_at(b"of another file", block * BLOCK + 4096).unwrap(),
            _ => {}
        }
    }
    file.set_len(300 * BLOCK).unwrap();
    let rest = goes_on(&mut daemons, &source).await;
    let lost = arrived.len() as u64 * 2 / 3;
    assert!(rest >= (200 - arrived.len() as u64 + lost) * BLOCK, "{rest} bytes moved, and {lost} blocks were lost");
    assert!(
        outcomes(&daemons.all[0], ImageRequest::Verify(name("data"))).await.iter().all(|host| host.trouble.is_none())
    );
}

#[tokio::test]
async fn hosts_that_take_an_image_together_give_each_other_what_they_have() {
    let daemons = Daemons::cluster(3).await;
    let dir = tempfile::tempdir().unwrap();
    let source = disk(&dir.path().join("data.raw"), 800);
    import(&daemons.all[0], import_of(&source, "data")).await.unwrap();
    let hosts = vec![name("host2"), name("host3")];
    let both = ImageRequest::Sync(SyncImage { image: name("data"), hosts, rate: 6 << 20 });
    let ended = outcomes(&daemons.all[0], both).await;
    let mut shared = 0;
    for (outcome, daemon) in ended.iter().zip(&daemons.all[1..]) {
        assert!(moved(outcome) >= 400 * BLOCK, "{outcome:?}");
        let from_others = outcome.told[0].split(", ").nth(1).map_or("0", |told| told.split(' ').next().unwrap());
        shared += from_others.parse::<u64>().unwrap();
        assert!(fs::read(pool(daemon).join("data/disk.raw")).unwrap() == fs::read(&source).unwrap());
        assert_eq!(inside(daemon), ["data"]);
    }
    assert!(shared > 100 * BLOCK, "only {shared} of {} bytes: {ended:?}", 800 * BLOCK);
}

/// A directory that takes no more than that. Dropped, it is as it was.
struct Small(PathBuf);

impl Small {
    fn over(path: PathBuf, bytes: u64) -> Self {
        fs::create_dir_all(&path).unwrap();
        let options = format!("size={bytes}");
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// A file system on which copies can share their blocks. Dropped, it is gone.
struct Xfs(PathBuf);

impl Xfs {
    /// None where it cannot be made or mounted here.
    fn over(path: PathBuf, file: &Path) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        File::create(file).unwrap().set_len(320 << 20).unwrap();
        let ran = |program: &str, words: &[&std::ffi::OsStr]| {
            Command::new(program).args(words).output().is_ok_and(|ran| ran.status.success())
        };
        let made = ran("mkfs.xfs", &["-q".as_ref(), file.as_os_str()]);
        let mounted = made && ran("mount", &["-o".as_ref(), "loop".as_ref(), file.as_os_str(), path.as_os_str()]);
        mounted.then_some(Self(path))
    }

    fn used(&self) -> u64 {
        nix::unistd::sync();
        let stat = nix::sys::statvfs::statvfs(&self.0).unwrap();
        (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
async fn copies_share_their_blocks_where_the_file_system_can() {
    let daemons = Daemons::cluster(2).await;
    let (host1, host2) = (&daemons.all[0], &daemons.all[1]);
    let dir = tempfile::tempdir().unwrap();
    let mounts = [host1, host2].map(|host| Xfs::over(pool(host), &dir.path().join(&host.name)));
    let [Some(first), Some(second)] = &mounts else {
        eprintln!("skipped: no XFS can be made and mounted here (xfsprogs, loop devices)");
        return;
    };
    let bytes = 400 * BLOCK;
    let source = disk(&pool(host1).join("mine.raw"), 800);
    let before = first.used();
    import(host1, import_of(&source, "data")).await.unwrap();
    assert!(first.used() < before + bytes / 4, "the import took {} of {bytes} bytes", first.used() - before);
    assert_eq!(outcomes(host1, sync("data", "host2", 0)).await[0].trouble, None);

    // The old version is held, so that its blocks do not become free.
    let old = File::open(pool(host2).join("data/disk.raw")).unwrap();
    File::options().write(true).open(&source).unwrap().write_all_at(&[7; 9], 6 * BLOCK).unwrap();
    import(host1, import_of(&source, "data")).await.unwrap();
    let before = second.used();
    assert_eq!(outcomes(host1, sync("data", "host2", 0)).await[0].trouble, None);
    assert!(second.used() < before + bytes / 4, "a new version took {} of {bytes} bytes", second.used() - before);
    assert!(fs::read(pool(host2).join("data/disk.raw")).unwrap() == fs::read(&source).unwrap());
    assert_eq!(old.metadata().unwrap().len(), 800 * BLOCK);
    assert!(outcomes(host1, ImageRequest::Verify(name("data"))).await.iter().all(|host| host.trouble.is_none()));
}

#[tokio::test]
async fn a_pool_that_is_full_in_the_middle_says_so_and_has_no_image() {
    let daemons = Daemons::cluster(2).await;
    let (host1, host2) = (&daemons.all[0], &daemons.all[1]);
    let dir = tempfile::tempdir().unwrap();
    import(host1, import_of(&disk(&dir.path().join("data.raw"), 80), "data")).await.unwrap();
    let small = Small::over(pool(host2), 20 * BLOCK);
    let failed = outcomes(host1, sync("data", "host2", 0)).await;
    let trouble = failed[0].trouble.as_ref().unwrap();
    assert_eq!(trouble.code, ErrorCode::DiskFull, "{trouble:?}");
    assert!(!inside(host2).contains(&"data".to_owned()));
    assert_eq!(placement(host1, "data", "host2").await, Some(PlacementState::Missing));
    assert_eq!(
        import(host2, import_of(&dir.path().join("data.raw"), "other")).await.unwrap_err().code,
        ErrorCode::DiskFull
    );
    assert_eq!(catalogue(host1).await.len(), 1);
    drop(small);
    assert_eq!(outcomes(host1, sync("data", "host2", 0)).await[0].trouble, None);
}

#[tokio::test]
async fn pinned_images_stay_and_deleted_ones_leave_nothing() {
    let daemons = Daemons::cluster(2).await;
    let (host1, host2) = (&daemons.all[0], &daemons.all[1]);
    let dir = tempfile::tempdir().unwrap();
    import(host1, import_of(&disk(&dir.path().join("data.raw"), 4), "data")).await.unwrap();
    outcomes(host1, sync("data", "host2", 0)).await;
    let pin = |pinned| AdminRequest::Image(ImageRequest::Pin { image: name("data"), pinned });
    assert_eq!(host2.ask(&pin(true)).await, Ok(AdminReply::Done));
    assert_eq!(daemon_refuses(host1, ImageRequest::Delete(name("data"))).await.code, ErrorCode::ImageInUse);
    let to = dir.path().join("out.raw");
    let export = ImageRequest::Export { image: name("data"), to: to.clone() };
    ask(host2, export.clone()).await.unwrap();
    assert!(fs::read(&to).unwrap() == fs::read(dir.path().join("data.raw")).unwrap());
    assert_eq!(daemon_refuses(host2, export).await.code, ErrorCode::StorageFailed, "nothing is overwritten");
    host1.ask(&pin(false)).await.unwrap();
    fs::create_dir(pool(host2).join("mine")).unwrap();
    let deleted = outcomes(host1, ImageRequest::Delete(name("data"))).await;
    assert!(deleted.iter().all(|outcome| outcome.trouble.is_none()), "{deleted:?}");
    assert_eq!((catalogue(host2).await, inside(host1)), (vec![], vec![]));
    assert_eq!(inside(host2), ["mine"], "what is no image of the catalogue is nobody's business");
    assert_eq!(daemon_refuses(host1, ImageRequest::Delete(name("data"))).await.code, ErrorCode::UnknownImage);
    assert_eq!(AdminRequest::Image(ImageRequest::Import(import_of(&to, "x"))).needs(), AccessRole::Admin);
}
