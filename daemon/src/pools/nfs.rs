//! An export of an NFS server (NFSv3), spoken to from user space: no mount, no kernel.
//!
//! One [`Share`] is one connection under one user number. NFSv3 has no open files: the server looks at the user number
//! of every single write, which is what the fence of disks rests on (see [`super`]). A call waits for its answer as long as
//! the connection lasts. Whoever cannot wait gives the connection up; only then may the same be asked on another one,
//! for a server that merely stood still would do the old writes after the new ones.

use std::{io, net::SocketAddr, time::Duration};

use nfs3_client::{
    ConnectError, MountError, Nfs3Client, Nfs3ConnectionBuilder, RpcError,
    io::{AsyncRead, AsyncWrite},
    net::Connector,
    nfs3_types::{
        nfs3::{
            COMMIT3args, CREATE3args, FSSTAT3args, GETATTR3args, LOOKUP3args, Nfs3Option, Nfs3Result, READ3args,
            READDIR3args, REMOVE3args, SETATTR3args, WRITE3args, cookieverf3, createhow3, diropargs3, fattr3,
            filename3, nfs_fh3, nfsstat3, nfstime3, sattr3, stable_how,
        },
        rpc::{auth_unix, opaque_auth},
        xdr_codec::Opaque,
    },
};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, lookup_host},
};
use vt_protocol::{
    error::{ErrorCode, Report},
    pool::NfsPlace,
};

/// Most bytes of one read or write. Servers name larger ones than they are good at.
pub(crate) const PIECE: usize = 1 << 20;
/// Bytes of a listing that are asked for at once.
const LISTING: u32 = 64 << 10;
/// Most names that are read of a directory.
const NAMES_MAX: usize = 100_000;
const WRITE: &str = "a write fails";
const READ: &str = "a read fails";
const COMMIT: &str = "a file cannot be synced";
/// What is said where a later epoch has a file.
pub(crate) const TAKEN: &str = "a later owner has the file";
/// The user that owns the export.
pub(crate) const ROOT: u32 = 0;

/// Why an export could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NfsError {
    /// Its server cannot be reached.
    #[error("the server {server} cannot be reached")]
    Unreachable {
        server: String,
        #[source]
        source: io::Error,
    },
    /// Its server lets nobody in there.
    #[error("the server {server} does not give {export} to this host: {why}")]
    Denied { server: String, export: String, why: String },
    /// The server says no.
    #[error("{what}: the server says {}", words(*.status))]
    Refused { what: &'static str, status: nfsstat3 },
    /// The connection broke, or what came over it was no answer.
    #[error("the connection to the server broke: {0}")]
    Broken(String),
    /// Another version of the protocol, or a strange server.
    #[error("{0}")]
    Strange(&'static str),
}

impl NfsError {
    /// What the server said.
    pub(crate) fn status(&self) -> Option<nfsstat3> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether it is about the bytes of a file, not about what it is called or who has it.
    pub(crate) fn is_of_data(&self) -> bool {
        matches!(self, Self::Refused { what: WRITE | READ | COMMIT | TAKEN, .. })
    }

    /// Whether the same may go well on another connection.
    pub(crate) fn is_of_connection(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Denied { .. } | Self::Broken(_))
    }

    /// As a user is told.
    pub(crate) fn report(&self, place: &NfsPlace) -> Report {
        let full = matches!(self.status(), Some(nfsstat3::NFS3ERR_NOSPC | nfsstat3::NFS3ERR_DQUOT));
        let (code, title) = match full {
            true => (ErrorCode::DiskFull, format!("the pool is full: {self}")),
            false => (ErrorCode::StorageFailed, self.to_string()),
        };
        let report = Report::new(code, title).with("pool", place.to_string()).caused_by(self);
        match self {
            Self::Unreachable { .. } | Self::Broken(_) => report.retryable(),
            Self::Denied { .. } => report.help("showmount -e SERVER   (names its exports and who may mount them)"),
            _ => report,
        }
    }
}

/// What a status means, in words.
fn words(status: nfsstat3) -> String {
    let words = match status {
        nfsstat3::NFS3ERR_PERM | nfsstat3::NFS3ERR_ACCES => "not allowed",
        nfsstat3::NFS3ERR_NOENT => "there is none",
        nfsstat3::NFS3ERR_IO => "its disk failed",
        nfsstat3::NFS3ERR_NOSPC => "no room is left",
        nfsstat3::NFS3ERR_DQUOT => "the quota is used up",
        nfsstat3::NFS3ERR_ROFS => "its file system is read-only",
        nfsstat3::NFS3ERR_STALE => "the file is gone",
        _ => return status.to_string(),
    };
    format!("{words} ({status})")
}

impl From<RpcError> for NfsError {
    fn from(error: RpcError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A file or directory of the server.
pub(crate) type Handle = nfs_fh3;

/// What a server keeps of one boot: another one means that what was not committed may be lost.
pub(crate) type Verifier = [u8; 8];

/// Where data are when a write is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// On disk.
    Safe,
    /// In the server's memory, of this boot.
    Held(Verifier),
}

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    /// Its length, bytes.
    pub(crate) length: u64,
    /// The user number that owns it.
    pub(crate) owner: u32,
    /// When it was written last, by the server's clock, seconds since 1970.
    pub(crate) written_unix: u32,
    /// When anything of it was changed last.
    changed: nfstime3,
}

impl From<fattr3> for Facts {
    fn from(attributes: fattr3) -> Self {
        Self {
            length: attributes.size,
            owner: attributes.uid,
            written_unix: attributes.mtime.seconds,
            changed: attributes.ctime,
        }
    }
}

/// One connection to an export, under one user number.
pub(crate) struct Share {
    client: Nfs3Client<Wire>,
    root: Handle,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Share")
    }
}

/// A connection whose end is an error: the client asks on and on otherwise.
struct Wire(TcpStream);

impl AsyncRead for Wire {
    async fn async_read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into).await? {
            0 if !into.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

impl AsyncWrite for Wire {
    async fn async_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes).await? {
            0 if !bytes.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            count => Ok(count),
        }
    }
}

/// Connections that notice when the other side is gone and do not hold small requests back.
struct Plain;

impl Plain {
    fn prepared(stream: TcpStream) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, Duration::from_secs(10))?;
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(5))?;
        Ok(Wire(stream))
    }
}

impl Connector for Plain {
    type Connection = Wire;

    async fn connect(&self, to: SocketAddr) -> io::Result<Self::Connection> {
        Self::prepared(TcpStream::connect(to).await?)
    }

    async fn connect_with_port(&self, to: SocketAddr, from: u16) -> io::Result<Self::Connection> {
        let (socket, any) = match to {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, SocketAddr::from(([0u8; 4], from))),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, SocketAddr::from(([0u16; 8], from))),
        };
        socket.bind(any)?;
        Self::prepared(socket.connect(to).await?)
    }
}

impl Share {
    /// Connects. Bounded by the caller.
    ///
    /// # Errors
    /// The server is not there, or does not let this host in.
    pub(crate) async fn open(place: &NfsPlace, user: u32) -> Result<Self, NfsError> {
        let server = place.server.clone();
        let unreachable = |source| NfsError::Unreachable { server: server.clone(), source };
        let address = lookup_host((place.server.as_str(), 0)).await.map_err(unreachable)?.next();
        let address = address.ok_or_else(|| unreachable(io::Error::other("its name has no address")))?;
        let credential = auth_unix {
            stamp: 0,
            machinename: Opaque::borrowed(b"vtmesh"),
            uid: user,
            // No group has rights on a disk.
            gid: user,
            gids: Vec::new(),
        };
        let mut builder = Nfs3ConnectionBuilder::new(Plain, address.ip().to_string(), &place.export)
            // Servers want a port that only root has, by default.
            .connect_from_privileged_port(nix::unistd::geteuid().is_root())
            .credential(opaque_auth::auth_unix(&credential));
        if let Some(port) = place.port {
            builder = builder.nfs3_port(port);
        }
        if let Some(port) = place.mount_port {
            builder = builder.mount_port(port);
        }
        let denied = |why: String| NfsError::Denied { server: server.clone(), export: place.export.clone(), why };
        let connection = builder.mount().await.map_err(|error| match error {
            ConnectError::Io(source) => unreachable(source),
            ConnectError::Mount(MountError::Denied(status)) => denied(format!("{status:?}")),
            ConnectError::Mount(MountError::Rpc(RpcError::Auth(status))) => denied(status.to_string()),
            ConnectError::Portmap(error) => denied(format!("its portmapper: {error}")),
            ConnectError::Mount(MountError::Rpc(error)) => NfsError::Broken(error.to_string()),
        })?;
        let root = connection.root_nfs_fh3();
        Ok(Self { client: connection.into_nfs3_client(), root })
    }

    fn at<'a>(&self, name: &'a str) -> diropargs3<'a> {
        diropargs3 { dir: self.root.clone(), name: filename3(Opaque::borrowed(name.as_bytes())) }
    }

    /// A file of the export; `None` where there is none.
    pub(crate) async fn find(&mut self, name: &str) -> Result<Option<Handle>, NfsError> {
        match self.client.lookup(&LOOKUP3args { what: self.at(name) }).await? {
            Nfs3Result::Ok(found) => Ok(Some(found.object)),
            Nfs3Result::Err((nfsstat3::NFS3ERR_NOENT, _)) => Ok(None),
            Nfs3Result::Err((status, _)) => Err(NfsError::Refused { what: "a file cannot be looked up", status }),
        }
    }

    /// What is known of a file.
    pub(crate) async fn facts(&mut self, file: &Handle) -> Result<Facts, NfsError> {
        match self.client.getattr(&GETATTR3args { object: file.clone() }).await? {
            Nfs3Result::Ok(found) => Ok(found.obj_attributes.into()),
            Nfs3Result::Err((status, _)) => Err(NfsError::Refused { what: "a file cannot be looked at", status }),
        }
    }

    /// A new file that `owner` alone may write.
    pub(crate) async fn create(&mut self, name: &str, owner: u32) -> Result<Handle, NfsError> {
        let attributes = sattr3 {
            mode: Nfs3Option::Some(0o600),
            uid: Nfs3Option::Some(owner),
            gid: Nfs3Option::Some(owner),
            ..sattr3::default()
        };
        let args = CREATE3args { where_: self.at(name), how: createhow3::GUARDED(attributes) };
        let made = match self.client.create(&args).await? {
            Nfs3Result::Ok(made) => made.obj,
            Nfs3Result::Err((status, _)) => return Err(NfsError::Refused { what: "a file cannot be made", status }),
        };
        match made {
            Nfs3Option::Some(file) => Ok(file),
            Nfs3Option::None => {
                self.find(name).await?.ok_or(NfsError::Strange("the server makes a file and then has none"))
            }
        }
    }

    async fn set(
        &mut self,
        file: &Handle,
        to: sattr3,
        guard: Nfs3Option<nfstime3>,
        what: &'static str,
    ) -> Result<(), NfsError> {
        let args = SETATTR3args { object: file.clone(), new_attributes: to, guard };
        match self.client.setattr(&args).await? {
            Nfs3Result::Ok(_) => Ok(()),
            Nfs3Result::Err((status, _)) => Err(NfsError::Refused { what, status }),
        }
    }

    /// Gives a file to another user, if it is still as it was seen. From the answer on the server refuses writes of all
    /// others.
    pub(crate) async fn give(&mut self, file: &Handle, owner: u32, seen: &Facts) -> Result<(), NfsError> {
        let to = sattr3 { uid: Nfs3Option::Some(owner), gid: Nfs3Option::Some(owner), ..sattr3::default() };
        let what = "a file cannot be given to another user (does the export squash root?)";
        self.set(file, to, Nfs3Option::Some(seen.changed), what).await
    }

    /// Sets a file's length; what is new reads as zeros.
    pub(crate) async fn set_length(&mut self, file: &Handle, length: u64) -> Result<(), NfsError> {
        let to = sattr3 { size: Nfs3Option::Some(length), ..sattr3::default() };
        self.set(file, to, Nfs3Option::None, "a file's length cannot be set").await
    }

    /// Fills `into` from `offset`; behind the end of the file are zeros.
    pub(crate) async fn read(&mut self, file: &Handle, offset: u64, into: &mut [u8]) -> Result<(), NfsError> {
        let mut done = 0;
        while done < into.len() {
            let wanted = (into.len() - done).min(PIECE);
            let args = READ3args { file: file.clone(), offset: offset + done as u64, count: wanted as u32 };
            let read = match self.client.read(&args).await? {
                Nfs3Result::Ok(read) => read,
                Nfs3Result::Err((status, _)) => return Err(NfsError::Refused { what: READ, status }),
            };
            let bytes = read.data.as_ref();
            if bytes.len() > wanted || (bytes.is_empty() && !read.eof) {
                return Err(NfsError::Strange("the server answers a read with what was not asked for"));
            }
            into[done..done + bytes.len()].copy_from_slice(bytes);
            done += bytes.len();
            if read.eof && done < into.len() {
                into[done..].fill(0);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes all of `bytes`. `safe`: they are on disk before it is answered.
    pub(crate) async fn write(
        &mut self,
        file: &Handle,
        offset: u64,
        bytes: &[u8],
        safe: bool,
    ) -> Result<Written, NfsError> {
        let stable = if safe { stable_how::FILE_SYNC } else { stable_how::UNSTABLE };
        let (mut done, mut written) = (0, Written::Safe);
        while done < bytes.len() {
            let piece = &bytes[done..bytes.len().min(done + PIECE)];
            let args = WRITE3args {
                file: file.clone(),
                offset: offset + done as u64,
                count: piece.len() as u32,
                stable,
                data: Opaque::borrowed(piece),
            };
            let answer = match self.client.write(&args).await? {
                Nfs3Result::Ok(answer) => answer,
                Nfs3Result::Err((status, _)) => return Err(NfsError::Refused { what: WRITE, status }),
            };
            if answer.count == 0 || answer.count as usize > piece.len() {
                return Err(NfsError::Strange("the server answers a write with what was not asked for"));
            }
            done += answer.count as usize;
            let held = Written::Held(answer.verf.0);
            match (answer.committed, written) {
                (stable_how::UNSTABLE, _) if safe => {
                    return Err(NfsError::Strange("the server does not sync a write that it was asked to sync"));
                }
                // Pieces of two boots: the first is taken, so that the commit shows the difference.
                (stable_how::UNSTABLE, Written::Safe) => written = held,
                _ => {}
            }
        }
        Ok(written)
    }

    /// What was written is on disk when this returns, if the server is still the one of that boot.
    pub(crate) async fn commit(&mut self, file: &Handle) -> Result<Verifier, NfsError> {
        match self.client.commit(&COMMIT3args { file: file.clone(), offset: 0, count: 0 }).await? {
            Nfs3Result::Ok(done) => Ok(done.verf.0),
            Nfs3Result::Err((status, _)) => Err(NfsError::Refused { what: COMMIT, status }),
        }
    }

    /// Removes a file. Returns whether there was one.
    pub(crate) async fn remove(&mut self, name: &str) -> Result<bool, NfsError> {
        match self.client.remove(&REMOVE3args { object: self.at(name) }).await? {
            Nfs3Result::Ok(_) => Ok(true),
            Nfs3Result::Err((nfsstat3::NFS3ERR_NOENT, _)) => Ok(false),
            Nfs3Result::Err((status, _)) => Err(NfsError::Refused { what: "a file cannot be removed", status }),
        }
    }

    /// Names in the export, bounded.
    pub(crate) async fn names(&mut self) -> Result<Vec<String>, NfsError> {
        let (mut names, mut cookie, mut cookieverf) = (Vec::new(), 0, cookieverf3::default());
        loop {
            let args = READDIR3args { dir: self.root.clone(), cookie, cookieverf, count: LISTING };
            let page = match self.client.readdir(&args).await? {
                Nfs3Result::Ok(page) => page,
                Nfs3Result::Err((status, _)) => return Err(NfsError::Refused { what: "it cannot be listed", status }),
            };
            cookieverf = page.cookieverf;
            let before = names.len();
            for entry in page.reply.entries.0 {
                cookie = entry.cookie;
                names.extend(std::str::from_utf8(entry.name.as_ref()).ok().map(str::to_owned));
            }
            if page.reply.eof || names.len() == before || names.len() > NAMES_MAX {
                return Ok(names);
            }
        }
    }

    /// Bytes that are free.
    pub(crate) async fn free(&mut self) -> Result<u64, NfsError> {
        match self.client.fsstat(&FSSTAT3args { fsroot: self.root.clone() }).await? {
            Nfs3Result::Ok(stat) => Ok(stat.abytes),
            Nfs3Result::Err((status, _)) => Err(NfsError::Refused { what: "how much is free is not told", status }),
        }
    }
}
