//! QEMU's status words. A word we do not know is kept as it is.

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vdoc])* #[doc = concat!("`", $word, "`")] $variant,)*
            /// A word of a newer QEMU.
            Other(String),
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word { $($word => Self::$variant,)* other => Self::Other(other.to_owned()) }
            }
        }

        impl $name {
            /// QEMU's word.
            pub fn as_str(&self) -> &str {
                match self { $(Self::$variant => $word,)* Self::Other(word) => word }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(
    /// What a VM is doing.
    RunState {
        Running = "running",
        Paused = "paused",
        Prelaunch = "prelaunch",
        InMigrate = "inmigrate",
        FinishMigrate = "finish-migrate",
        PostMigrate = "postmigrate",
        RestoreVm = "restore-vm",
        SaveVm = "save-vm",
        Shutdown = "shutdown",
        Suspended = "suspended",
        Watchdog = "watchdog",
        IoError = "io-error",
        InternalError = "internal-error",
        GuestPanicked = "guest-panicked",
        Debug = "debug",
        Colo = "colo",
    }
);

words!(
    /// Where a migration is.
    MigrationStatus {
        /// None was begun.
        None = "none",
        Setup = "setup",
        Active = "active",
        PreSwitchover = "pre-switchover",
        Device = "device",
        PostcopyDevice = "postcopy-device",
        PostcopyActive = "postcopy-active",
        PostcopyPaused = "postcopy-paused",
        PostcopyRecoverSetup = "postcopy-recover-setup",
        PostcopyRecover = "postcopy-recover",
        WaitUnplug = "wait-unplug",
        Completed = "completed",
        Failed = "failed",
        Cancelling = "cancelling",
        Cancelled = "cancelled",
        Colo = "colo",
    }
);

impl MigrationStatus {
    /// Whether nothing more will happen by itself.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether the guest's pages are at both sides, so that neither can do without the other.
    pub fn is_postcopy(&self) -> bool {
        matches!(
            self,
            Self::PostcopyDevice
                | Self::PostcopyActive
                | Self::PostcopyPaused
                | Self::PostcopyRecoverSetup
                | Self::PostcopyRecover
        )
    }
}
