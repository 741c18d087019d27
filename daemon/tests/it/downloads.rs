//! Images from addresses and images made of others, on real daemons: what comes whole is taken, what does not is refused
//! with one reason, goes on where it was, or begins anew.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ring::digest;
use vt_protocol::{
    catalogue::{ConvertImage, FetchImage, FetchSum, ImageFormat, ImageRequest, Packing},
    error::{ErrorCode, Report},
};

use crate::{
    daemons::{Daemon, Daemons},
    images::{BLOCK, ask, catalogue, disk, import, import_of, inside, name, outcomes, pool, qemu_img, sync},
};

fn sha256(bytes: &[u8]) -> FetchSum {
    let digest = digest::digest(&digest::SHA256, bytes);
    FetchSum::Known("sha256".into(), digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn fetch_of(url: String, sum: FetchSum) -> FetchImage {
    FetchImage { url, name: name("got"), pool: None, format: None, sum, packing: None }
}

async fn fetch(daemon: &Daemon, fetch: &FetchImage) -> Result<(), Report> {
    ask(daemon, ImageRequest::Fetch(fetch.clone())).await.map(drop)
}

/// A server of one file, which can break off, and counts the bytes that it has sent.
struct Server {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
    /// Bytes after which a connection ends; beyond the file: none does.
    breaks_at: Arc<AtomicU64>,
}

impl Server {
    fn of(bytes: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            sent: Arc::default(),
            breaks_at: Arc::new(AtomicU64::new(u64::MAX)),
        };
        let (sent, breaks_at) = (Arc::clone(&server.sent), Arc::clone(&server.breaks_at));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &bytes, &sent, breaks_at.load(Ordering::SeqCst));
            }
        });
        server
    }

    fn url(&self, file: &str) -> String {
        format!("http://{}/{file}", self.address)
    }
}

fn answer(mut stream: TcpStream, bytes: &[u8], sent: &AtomicU64, breaks_at: u64) -> std::io::Result<()> {
    let mut from = 0;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    let (status, rest) = if from == 0 { ("200 OK", bytes) } else { ("206 Partial Content", &bytes[from..]) };
    let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    let range = if from == 0 { "" } else { &range };
    write!(stream, "HTTP/1.1 {status}\r\n{range}Content-Length: {}\r\nConnection: close\r\n\r\n", rest.len())?;
    let count = rest.len().min(usize::try_from(breaks_at).unwrap_or(usize::MAX));
    stream.write_all(&rest[..count])?;
    sent.fetch_add(count as u64, Ordering::SeqCst);
    stream.shutdown(std::net::Shutdown::Write)?;
    // The other side closes when it has what it wants.
    let _ = stream.read(&mut [0]);
    Ok(())
}

#[tokio::test]
async fn a_download_that_broke_off_goes_on_and_has_its_name_only_when_it_is_whole() {
    let daemons = Daemons::cluster(1).await;
    let host = &daemons.all[0];
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(disk(&dir.path().join("data.raw"), 40)).unwrap();
    let server = Server::of(bytes.clone());
    let asked = fetch_of(server.url("data.raw"), sha256(&bytes));
    let broken = Server::of(bytes[..bytes.len() / 2].to_vec());
    let cut = fetch(host, &fetch_of(broken.url("data.raw"), sha256(&bytes))).await.unwrap_err();
    assert_eq!(cut.code, ErrorCode::ImageDamaged, "half a file is another file: {cut:?}");
    assert_eq!((catalogue(host).await, inside(host)), (vec![], vec![]), "what is wrong is not kept");

    server.breaks_at.store(0, Ordering::SeqCst);
    let nothing = fetch(host, &asked).await.unwrap_err();
    assert_eq!(nothing.code, ErrorCode::DownloadFailed, "{nothing:?}");
    server.breaks_at.store(30 * BLOCK, Ordering::SeqCst);
    // Thirty blocks and then the last ten: each connection brings something, so it is made again.
    fetch(host, &asked).await.unwrap();
    assert_eq!(server.sent.load(Ordering::SeqCst), bytes.len() as u64, "no byte came twice");
    assert!(fs::read(pool(host).join("got/disk.raw")).unwrap() == bytes);
    assert_eq!(inside(host), ["got"], "nothing else is left");
}

#[tokio::test]
async fn what_comes_from_an_address_and_is_not_what_it_should_be_leaves_nothing() {
    let daemons = Daemons::cluster(1).await;
    let host = &daemons.all[0];
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join(file);
    let url = |file: &str| format!("file://{}", at(file).display());
    let sound = at("sound.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", sound.to_str().unwrap(), "8M"]);
    let bytes = fs::read(&sound).unwrap();
    let packed = Command::new("gzip").args(["-c"]).arg(&sound).output().unwrap().stdout;
    fs::write(at("sound.qcow2.gz"), &packed).unwrap();
    fs::write(at("cut.gz"), &packed[..packed.len() / 2]).unwrap();
    fs::write(at("SUMS"), format!("{}  other.qcow2\n", "0".repeat(64))).unwrap();
    let outside = at("outside.qcow2");
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", outside.to_str().unwrap(), "8M"]);
    let outside = fs::read(outside).unwrap();

    let wrong = FetchSum::Known("sha256".into(), "00".repeat(32));
    let gzip = |url, sum| FetchImage { packing: Some(Packing::Gzip), ..fetch_of(url, sum) };
    let listed = |list| FetchSum::ListedAt { kind: "sha256".into(), url: list };
    for (asked, code, says) in [
        (fetch_of(url("sound.qcow2"), wrong), ErrorCode::ImageDamaged, "digest is another one"),
        (fetch_of(url("absent.qcow2"), sha256(b"")), ErrorCode::DownloadFailed, "did not come"),
        (fetch_of("http://127.0.0.1:1/a".into(), sha256(b"")), ErrorCode::DownloadFailed, "did not come"),
        (fetch_of("scp://127.0.0.1/a".into(), sha256(b"")), ErrorCode::Usage, "no address"),
        (fetch_of(url("sound.qcow2"), FetchSum::Known("md5".into(), "12".into())), ErrorCode::Usage, "no md5 digest"),
        (fetch_of(url("sound.qcow2"), listed(url("SUMS"))), ErrorCode::ImageRefused, "has none for sound.qcow2"),
        (fetch_of(url("sound.qcow2"), listed(url("NONE"))), ErrorCode::DownloadFailed, "list with its digest"),
        (gzip(url("cut.gz"), sha256(&packed[..packed.len() / 2])), ErrorCode::ImageDamaged, "cannot be unpacked"),
        (fetch_of(url("outside.qcow2"), sha256(&outside)), ErrorCode::ImageRefused, "no image of this pool"),
    ] {
        let report = fetch(host, &asked).await.unwrap_err();
        assert_eq!(report.code, code, "{asked:?}: {report:?}");
        assert!(report.title.contains(says), "{says}: {report:?}");
        assert_eq!(catalogue(host).await, [], "{says}");
        let named: Vec<String> =
            inside(host).into_iter().filter(|entry| !entry.starts_with(".part-got-get-")).collect();
        assert_eq!(named, <[String; 0]>::default(), "{says}");
    }
    assert!(outcomes(host, ImageRequest::Gc).await.iter().all(|outcome| outcome.trouble.is_none()));
    assert_eq!(inside(host), <[String; 0]>::default(), "what broke off is swept");

    fs::write(at("SUMS"), format!("{}  sound.qcow2\n", known(&sha256(&bytes)))).unwrap();
    fetch(host, &fetch_of(url("sound.qcow2"), listed(url("SUMS")))).await.unwrap();
    fetch(host, &gzip(url("sound.qcow2.gz"), sha256(&packed))).await.unwrap();
    let got = &catalogue(host).await[0];
    assert_eq!((got.format, got.virtual_bytes), (ImageFormat::Qcow2, 8 << 20));
}

fn known(sum: &FetchSum) -> String {
    match sum {
        FetchSum::Known(_, digest) => digest.clone(),
        FetchSum::ListedAt { .. } => panic!("it is listed"),
    }
}

#[tokio::test]
async fn an_image_made_of_another_has_its_content_and_nothing_below_it() {
    let daemons = Daemons::cluster(2).await;
    let (host1, host2) = (&daemons.all[0], &daemons.all[1]);
    let dir = tempfile::tempdir().unwrap();
    import(host1, import_of(&disk(&dir.path().join("base.raw"), 6), "base")).await.unwrap();
    let below = pool(host1).join("base/disk.raw").display().to_string();
    let layer = dir.path().join("layer.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &below, layer.to_str().unwrap()]);
    import(host1, import_of(&layer, "layer")).await.unwrap();
    let convert = |image: &str, to: &str, format, compress| {
        let convert = ConvertImage { image: name(image), name: name(to), format, compress, pool: None };
        ImageRequest::Convert(convert)
    };
    ask(host1, convert("layer", "whole", ImageFormat::Qcow2, true)).await.unwrap();
    let images = catalogue(host1).await;
    let whole = images.iter().find(|image| image.name == name("whole")).unwrap();
    assert_eq!((whole.format, whole.backing.len()), (ImageFormat::Qcow2, 0));
    let flat = dir.path().join("flat.raw");
    let made = pool(host1).join("whole/disk.qcow2");
    qemu_img(&["convert", "-O", "raw", made.to_str().unwrap(), flat.to_str().unwrap()]);
    assert!(fs::read(&flat).unwrap() == fs::read(dir.path().join("base.raw")).unwrap());

    for (asked, code, says) in [
        (convert("layer", "layer", ImageFormat::Raw, false), ErrorCode::Usage, "made of itself"),
        (convert("layer", "raw", ImageFormat::Raw, true), ErrorCode::Usage, "cannot be packed"),
        (convert("absent", "raw", ImageFormat::Raw, false), ErrorCode::UnknownImage, "no image absent"),
        (convert("layer", "base", ImageFormat::Raw, false), ErrorCode::ImageInUse, "used by image layer"),
    ] {
        let report = ask(host1, asked).await.unwrap_err();
        assert_eq!((report.code, report.title.contains(says)), (code, true), "{report:?}");
    }
    let elsewhere = ask(host2, convert("layer", "raw", ImageFormat::Raw, false)).await.unwrap_err();
    assert_eq!(elsewhere.code, ErrorCode::ImageMissing, "{elsewhere:?}");
    // Damage below is found before it becomes an image of its own.
    rot(&pool(host1).join("base/disk.raw"));
    let damaged = ask(host1, convert("layer", "raw", ImageFormat::Raw, false)).await.unwrap_err();
    assert_eq!(damaged.code, ErrorCode::ImageDamaged, "{damaged:?}");
    assert!(damaged.title.contains("image base"), "{damaged:?}");
    assert_eq!(inside(host1), ["base", "layer", "whole"]);
    outcomes(host1, sync("whole", "host2", 0)).await.iter().for_each(|outcome| assert_eq!(outcome.trouble, None));
}

fn rot(file: &Path) {
    fs::File::options().write(true).open(file).unwrap().write_all_at(b"rot", 2 * BLOCK + 5).unwrap();
}
