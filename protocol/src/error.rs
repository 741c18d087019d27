//! Errors as a user meets them: a code from a closed list, what happened, the evidence, and what to type next.
//!
//! Libraries have error enums of their own; they become a [`Report`] once, where they leave for a user. Codes never
//! change meaning. `vtctl explain CODE` prints [`ErrorCode::explain`].

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Exit codes of vtctl: a contract, listed in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for happened.
    Ok = 0,
    /// A bug in us.
    Internal = 1,
    /// Bad flags or values.
    Usage = 2,
    /// A configuration or scenario is invalid.
    Config = 3,
    /// Nothing left to run after filters.
    NoneSelected = 4,
    /// No daemon answered.
    Unreachable = 20,
    /// A daemon answered, but the cluster cannot decide.
    NoQuorum = 21,
    /// Certificate, role or token refused.
    Denied = 22,
    /// The object does not exist.
    NotFound = 23,
    /// It exists, is busy, or changed meanwhile.
    Conflict = 24,
    /// Placement, capability or the machine says no.
    Precondition = 25,
    /// Some done, some not.
    Partial = 26,
    /// At least one case FAIL.
    Failed = 100,
    /// No FAIL, at least one ERROR.
    Infra = 101,
    /// The job was cancelled.
    Cancelled = 102,
    /// A deadline of the job was hit.
    TimedOut = 104,
    /// Set-up failed before any case.
    Setup = 105,
    /// The wait of the client passed; the operation goes on.
    WaitTimeout = 124,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// The code as the shell sees it.
    pub fn code(self) -> u8 {
        self as u8
    }
}

macro_rules! codes {
    ($( $variant:ident = $number:literal, $exit:ident, $explain:literal; )*) => {
        /// The closed list of error codes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "the explain text is the documentation")]
        #[repr(u16)]
        pub enum ErrorCode { $( $variant = $number, )* }

        impl ErrorCode {
            /// Every code there is, in order of number.
            pub const ALL: &'static [ErrorCode] = &[ $( ErrorCode::$variant, )* ];

            /// The exit code of a command that ends with this error.
            pub fn exit(self) -> Exit { match self { $( Self::$variant => Exit::$exit, )* } }

            /// Cause, how to check, how to fix.
            pub fn explain(self) -> &'static str { match self { $( Self::$variant => $explain, )* } }
        }
    };
}

codes! {
    Usage = 1, Usage, "The command line has a flag, value or name that the command does not take. `vtctl COMMAND --help` lists what it takes.";
    BadParameter = 2, Usage, "A parameter given with -p or in a configuration has a value that the scenario cannot use. The message names key, value and what is wanted. `vtctl scenario show NAME` lists the parameters.";
    BadHostsFile = 3, Usage, "The file given with -M has a line that is not a host name. One name a line; empty lines and lines beginning with # are skipped.";
    BadConfig = 101, Config, "A configuration file is invalid. Each mistake is shown with file, line and column.";
    BadProvider = 102, Config, "A test provider's definition, its tree, or the folder they are in cannot be used. The message names file and line. `vtctl provider list` shows what is defined.";
    ProviderMissing = 103, Precondition, "The tests of a provider are not on this machine. `vtctl provider sync` fetches them with git; a provider whose uri is file:///folder has to be at that folder.";
    NoVariants = 134, NoneSelected, "The filters leave no variant. `vtctl variants count` and `vtctl variants explain` show which line removed them.";
    Unclaimed = 201, Precondition, "This daemon belongs to no cluster yet. Make one with `vtctl cluster init`, or join one with `vtctl cluster join TOKEN`.";
    AlreadyClaimed = 202, Conflict, "This daemon already belongs to a cluster. To move it to another one, run `vtctl cluster leave` on it first.";
    NoQuorum = 203, NoQuorum, "Most voters do not answer, so the cluster cannot decide. Running VMs are not touched; new jobs wait. Bring a voter back: `vtctl cluster status` names them.";
    Unreachable = 204, Unreachable, "No daemon answered. Check that vtd runs (`systemctl status vtd`, or `vtctl lab status`) and that the socket or address is the right one.";
    Denied = 205, Denied, "The role of your certificate does not allow this. Roles are viewer, runner and admin.";
    WireVersion = 206, Conflict, "The two programs speak no common version of the protocol. Upgrade the older one.";
    OtherCluster = 207, Conflict, "The other side belongs to another cluster.";
    DeadlinePassed = 208, WaitTimeout, "The answer did not come within the deadline. What was asked may still happen: ask again, the same request is done once.";
    TokenGarbled = 210, Denied, "The text is not a join token, or a part of it is missing or changed. Copy the whole line that begins with vtj1_.";
    TokenUnknown = 211, Denied, "The cluster does not know this token. It may be from before a restore, or its record was cleared after it ended.";
    TokenOtherCluster = 212, Denied, "The token belongs to another cluster than the one that answered.";
    TokenExpired = 213, Denied, "A join token lives for a limited time. Make a new one on any host: `vtctl cluster token create`.";
    TokenForOther = 214, Denied, "A token admits either a host (`vtctl cluster join`) or a client (`vtctl config use-context --join`), as `--role` said when it was made. Make one of the right kind: `vtctl cluster token create`.";
    TokenUsed = 215, Denied, "A join token admits one host. If that was this host, its data directory was lost; make a new token: `vtctl cluster token create`.";
    TokenRevoked = 216, Denied, "An admin revoked the token. Make a new one: `vtctl cluster token create`.";
    CaMismatch = 217, Denied, "The certificate authority of the host that answered is not the one in the token. Someone may be in the middle, or the address now belongs to another cluster.";
    JoinUnreachable = 218, Unreachable, "No address in the token answered. Check the network and that port 7465/udp is open on the named hosts.";
    DialBackFailed = 219, Precondition, "The cluster could not reach this host at the address it advertises. Check --advertise and that port 7465/udp is open here.";
    NameTaken = 220, Conflict, "A host of this name is already in the cluster. Choose another with --name.";
    HostRemoved = 221, Denied, "The key of this host is not, or no longer, admitted to the cluster.";
    ClientRevoked = 222, Denied, "The key of this client is not, or no longer, admitted to the cluster. An admin makes a token for a new one: `vtctl cluster token create --role client-runner`.";
    CertificateExpired = 223, Denied, "The client certificate is outside its dates. An admin makes a token for a new one, `vtctl cluster token create --role client-runner`; the client takes it with `vtctl config use-context --join TOKEN`.";
    LastVoter = 224, Precondition, "The host is the last one that votes, or may vote, and answers. Without it nobody decides. Promote another host first, `vtctl host promote HOST`, and wait until `vtctl cluster status` shows that it votes.";
    NotAVoter = 225, Precondition, "Leadership goes to a host that votes and answers. `vtctl cluster status` shows who does; `vtctl host promote HOST` makes a host vote.";
    OldGeneration = 226, Denied, "The cluster was recovered from a lost quorum, or restored from a snapshot, without this host. What the host still believes is over. Clear it, `vtctl cluster leave --forget --yes`, and let it join as a new host: `vtctl cluster token create` on the cluster, `vtctl cluster join TOKEN` here.";
    QuorumHeld = 227, Conflict, "The cluster can decide, so there is nothing to recover from. Hosts that are gone for good are removed with `vtctl host remove`.";
    SnapshotUnusable = 228, Usage, "The file is not a snapshot of a cluster, or it was cut or changed, or it is of a later version of vtmesh. `vtctl cluster snapshot save FILE` makes one.";
    RequestConflict = 230, Conflict, "A request came again under the same id, but with other content. The first one stands; send the new one under an id of its own.";
    SessionOver = 231, Conflict, "The host acted with an epoch that is no longer its own: its session ended, or was opened anew. What it held was given up.";
    UnknownClient = 232, NotFound, "No client of this name is admitted. `vtctl cluster access list` shows the names.";
    Rotating = 233, Conflict, "The cluster's authority is not in a state that allows this: another one follows only when the one before the present is trusted no more, and that one is dropped only when everybody has a certificate of the present one, or when it is said that some need not. `vtctl cluster ca show` names who has none, `vtctl cluster ca rotate --finish` ends it.";
    OtherAuthority = 234, Denied, "One side showed a certificate of an authority that the other does not know. Where the authority was changed (`vtctl cluster ca show` on a host of the cluster) and this client was not used while both were trusted, it needs a new certificate: an admin revokes the old one, `vtctl cluster access revoke NAME`, and makes a token, `vtctl cluster token create --role client-runner`; the client takes it with `vtctl config use-context --join TOKEN`. Otherwise the address is of another cluster, or someone is in the middle.";
    UnknownHost = 302, NotFound, "No host of the cluster has this name. `vtctl host list` shows the names.";
    HostDown = 303, Precondition, "A host that the job needs does not answer. `vtctl host list` shows who does.";
    TooFewHosts = 304, Precondition, "The scenario needs more hosts than were given with -m.";
    UnknownScenario = 305, NotFound, "There is no scenario of this name. `vtctl scenario list` shows them.";
    TooLarge = 306, Usage, "The request is larger than the cluster takes. The message names the bound.";
    HostBusy = 307, Conflict, "A host serves another attempt. Jobs wait their turn; `vtctl job list` shows whose it is.";
    UnknownJob = 308, NotFound, "No job has this id. `vtctl job list` shows them.";
    CaseClosed = 309, Conflict, "The case or attempt has ended, or is not in a state that allows this. `vtctl job show` tells where it stands.";
    Cordoned = 310, Precondition, "The host is cordoned: no new case begins on it. `vtctl host uncordon HOST` lets cases come again.";
    HostInUse = 311, Conflict, "The host serves an attempt or owns a VM. `vtctl host drain HOST` keeps new cases off and waits for those that run; `vtctl job cancel JOB` ends them.";
    HostReserved = 312, Conflict, "A person holds the host for a while; `vtctl host list` tells who, what for and until when. Jobs of others wait. `vtctl host release HOST` ends the hold.";
    LabExists = 320, Conflict, "A lab of this name exists. `vtctl lab status` shows it, `vtctl lab down` removes it.";
    LabBroken = 321, Precondition, "The lab is half made or its record is damaged. `vtctl lab down` clears what is left of it.";
    LabPrecondition = 322, Precondition, "A lab needs root and the programs ip and nft (packages iproute2 and nftables).";
    LabMissing = 323, NotFound, "There is no lab of this name. `vtctl lab status` lists labs, `vtctl lab up` makes one.";
    ImageMissing = 401, Precondition, "The image is not on the host that needs it. The built-in one is made by `vtctl image build`.";
    ImageBuild = 402, Precondition, "The image could not be built. The message names the step and quotes the program that failed.";
    DiskFull = 403, Precondition, "The disk is full. Nothing was left behind; free some space and try again.";
    ImageDamaged = 404, Precondition, "A file of the image does not have the digest its record states. Build or import it again.";
    StorageFailed = 405, Precondition, "A file or directory of the host could not be used. The message names it and quotes the system.";
    ImageRefused = 406, Precondition, "The file cannot be taken as an image, or what was asked for cannot be done with it: the message names what is wrong with it. Other formats are converted first: `qemu-img convert -O qcow2 FILE NEW.qcow2`.";
    UnknownImage = 407, NotFound, "The catalogue has no image of this name. `vtctl image list` shows the names; `vtctl image import FILE` adds one.";
    ImageInUse = 408, Conflict, "The image is pinned, or a VM or another image uses it. `vtctl image show NAME` names them.";
    UnknownPool = 409, NotFound, "There is no pool of this name. `vtctl storage list` shows the names.";
    NoSource = 410, Precondition, "No host that answers has a whole copy of the image. `vtctl image show NAME` tells where copies are and how they are.";
    DownloadFailed = 411, Precondition, "A file that was asked for did not come from its address. The message quotes curl. What came is kept: asked for again, it goes on where it was.";
    PoolInUse = 412, Conflict, "The pool is one disk, and a VM has it, or another pool is the same one. `vtctl storage list` shows pools, `vtctl image writers` who writes.";
    QemuMissing = 501, Precondition, "The QEMU binary is not there or cannot be run. Install qemu-system-x86, or set its path in the settings.";
    QemuDied = 502, Precondition, "QEMU ended by itself. Its last words are quoted; the whole stderr is in the evidence of the case.";
    GuestNotBooted = 503, Failed, "The guest did not come up within its time. The end of its serial log is quoted.";
    QmpFailed = 504, Precondition, "QEMU refused a command or did not answer it in time. Its own words are quoted.";
    GuestUnreachable = 507, Failed, "The guest did not answer over the named channel.";
    VmLost = 508, Failed, "The VM ended or was lost while it should have run.";
    NetworkSetup = 509, Precondition, "A tap or bridge of the host could not be made. The message quotes the system.";
    VmFenced = 510, Precondition, "The VM was paused or killed by its guard because its host could not renew its session. This is the protection against two running copies.";
    NotOwner = 511, Conflict, "The host does not own this VM, or owned it under an earlier epoch. `vtctl vm list` shows who owns it.";
    LibvirtFailed = 512, Precondition, "libvirt refused what was asked of it, or did not answer. Its own words are quoted.";
    Preflight = 601, Failed, "Source and destination do not fit each other: the message names the difference. Nothing was started.";
    HostLost = 605, Infra, "A host of the case stopped answering while it ran.";
    MigrationRefused = 611, Conflict, "The migration is not in a phase that allows this, or another one of the same VM is under way.";
    DestinationLeft = 612, Failed, "The destination QEMU ended during the migration. The VM goes on at the source.";
    MigrationFailed = 613, Failed, "QEMU reports that the migration failed. Its own words are quoted; the VM goes on at the source.";
    DestinationUnreachable = 614, Infra, "The destination stopped answering during the migration. The VM goes on at the source.";
    MigrationTimeout = 615, Failed, "The migration did not complete within its time and was cancelled. The VM goes on at the source.";
    MigrationCancelled = 616, Cancelled, "The scenario had the migration cancelled in the named phase. The VM goes on at the source.";
    PostcopyLost = 617, Failed, "A side of a post-copy was lost while pages were missing at the destination: the guest is LOST. That is post-copy's nature; the message names the side.";
    DecisionLate = 618, Infra, "The guest stood still for longer than allowed, or its clocks are off, only because the hosts of the migration had not decided yet whose it is: one of them was slow or cut off. Nothing else is known to be wrong with the guest. `vtctl host list` shows who answers.";
    MemoryDamaged = 620, Failed, "Pages of the guest's memory do not hold what was written to them.";
    DiskDamaged = 621, Failed, "Records on the guest's disk that were acknowledged are lost or torn.";
    GuestRebooted = 622, Failed, "The guest's boot id changed: it was restarted instead of moved.";
    ClockJumped = 623, Failed, "The guest's clock or uptime jumped further than allowed.";
    AddressLost = 624, Failed, "The guest no longer answers at its address.";
    GuestStopped = 625, Failed, "The guest stood still for longer than allowed.";
    GuestDoubled = 626, Failed, "A second copy of the guest ran: it sent its beacon with numbers that another copy had sent before.";
    Unmet = 627, Failed, "A step of a scenario in a file expected something that was not found. The message names the line, what was expected and what was found.";
    BarrierBroken = 701, Infra, "A barrier can no longer be passed: a party ended, a host is suspect, or a deadline passed. The message names who is missing.";
    BarrierTimeout = 702, Infra, "A party's deadline for a barrier passed. The message names who did not arrive.";
    PartyCrashed = 703, Infra, "The process of a party ended without a result. Its stderr is in the evidence of the case.";
    CaseTimeout = 704, TimedOut, "The case did not end within its time.";
    Cancelled = 705, Cancelled, "A user cancelled the job; cases without a verdict got none.";
    CannotRunHere = 706, Ok, "The case cannot run on these hosts; the message says why. It is skipped, not failed.";
    Leftover = 707, Infra, "After the case something was left on a host that was not there before. The message names it.";
    ParentNotPassed = 708, Ok, "The case depends on another one of its job (`- name: other` in the configuration), and that one did not pass. It is skipped, not failed; `vtctl job show` tells what became of the other.";
    ResultsMissing = 801, NotFound, "The evidence of this job is on no host that answers.";
    ResultsWrite = 802, Precondition, "The results could not be written where you asked for them.";
    Internal = 901, Internal, "A bug in vtmesh. Please report it with the message and the daemon's log.";
    StoreDamaged = 902, Precondition, "The daemon's log or snapshot on disk is damaged. It must not go on with it: move its data directory away and join afresh.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{:04}", *self as u16)
    }
}

impl ErrorCode {
    /// The code a user typed: `E0213`, `e0213` or `213`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(['E', 'e']).unwrap_or(text);
        Self::of_number(digits.parse().ok()?)
    }

    fn of_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| *code as u16 == number)
    }
}

/// By its number, which never changes, and not by its place in the list, into which new codes are put. In JSON as it is
/// shown.
impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u16(*self as u16)
        }
    }
}

/// A code of a newer build is read as [`ErrorCode::Internal`]: title and help of its report are still worth reading.
impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let known = if deserializer.is_human_readable() {
            Self::parse(&String::deserialize(deserializer)?)
        } else {
            Self::of_number(u16::deserialize(deserializer)?)
        };
        Ok(known.unwrap_or(Self::Internal))
    }
}

/// One line of evidence: a short key and what was found.
pub type Evidence = (String, String);

/// What a user is shown, or a case is blamed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// From the closed list.
    pub code: ErrorCode,
    /// What happened: lower case, no full stop, at most 160 characters.
    pub title: String,
    /// Facts, in the order to be read.
    pub evidence: Vec<Evidence>,
    /// What to type next, most likely first.
    pub help: Vec<String>,
    /// The chain of causes, outermost first; shown at -v and in JSON.
    pub causes: Vec<String>,
    /// Whether the same call may succeed later.
    pub retryable: bool,
}

impl Report {
    /// Longest text of one field, in characters: reports are replicated, so they are bounded.
    pub const TEXT_MAX: usize = 1500;
    /// Most lines of evidence, help or causes.
    pub const LINES_MAX: usize = 16;

    /// A report without evidence yet.
    pub fn new(code: ErrorCode, title: impl Into<String>) -> Self {
        let title = cut(title.into());
        Self { code, title, evidence: Vec::new(), help: Vec::new(), causes: Vec::new(), retryable: false }
    }

    /// Adds a line of evidence.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        if self.evidence.len() < Self::LINES_MAX {
            self.evidence.push((key.into(), cut(value.into())));
        }
        self
    }

    /// Adds a line of help: something that can be typed, or one sentence.
    #[must_use]
    pub fn help(mut self, line: impl Into<String>) -> Self {
        if self.help.len() < Self::LINES_MAX {
            self.help.push(cut(line.into()));
        }
        self
    }

    /// Adds the chain of sources of an error.
    #[must_use]
    pub fn caused_by(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            if self.causes.len() >= Self::LINES_MAX {
                break;
            }
            self.causes.push(cut(error.to_string()));
            next = error.source();
        }
        self
    }

    /// Marks the report as worth a retry.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }
}

fn cut(text: String) -> String {
    if text.chars().count() <= Report::TEXT_MAX {
        return text;
    }
    let kept: String = text.chars().take(Report::TEXT_MAX - 1).collect();
    kept + "…"
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.title)
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_unique_and_explained() {
        for pair in ErrorCode::ALL.windows(2) {
            assert!((pair[0] as u16) < (pair[1] as u16), "{} before {}", pair[0], pair[1]);
        }
        for code in ErrorCode::ALL {
            assert!(code.explain().len() > 30, "{code}");
            assert_eq!(ErrorCode::parse(&code.to_string()), Some(*code));
        }
        assert_eq!(ErrorCode::parse("E9999"), None);
        assert_eq!(ErrorCode::parse("x"), None);
    }

    #[test]
    fn a_code_travels_as_its_number_and_an_unknown_one_is_not_the_end_of_its_report() {
        let bytes = postcard::to_stdvec(&ErrorCode::TokenExpired).unwrap();
        assert_eq!(bytes, [0xd5, 0x01], "213");
        for code in ErrorCode::ALL {
            let bytes = postcard::to_stdvec(code).unwrap();
            assert_eq!(postcard::from_bytes::<ErrorCode>(&bytes).unwrap(), *code);
        }
        assert_eq!(postcard::from_bytes::<ErrorCode>(&[0xff, 0x7f]).unwrap(), ErrorCode::Internal);
        assert_eq!(serde_json::to_string(&ErrorCode::TokenExpired).unwrap(), "\"E0213\"");
        assert_eq!(serde_json::from_str::<ErrorCode>("\"E0213\"").unwrap(), ErrorCode::TokenExpired);
    }

    #[test]
    fn a_report_is_bounded_whatever_is_put_into_it() {
        let mut report = Report::new(ErrorCode::Internal, "é".repeat(5000));
        for i in 0..100 {
            report = report.with(format!("k{i}"), "v".repeat(5000));
        }
        assert_eq!(report.title.chars().count(), Report::TEXT_MAX);
        assert_eq!(report.evidence.len(), Report::LINES_MAX);
    }
}
