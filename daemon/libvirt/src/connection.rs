//! libvirt, connected when it is needed, and again when it has gone away.

use std::{
    io,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use virt::{connect::Connect, error, event};
use vt_protocol::libvirt::{Hello, Refusal};

/// Seconds between two signs of life that libvirtd is asked for, and how many it may leave out. With one that hangs,
/// every call fails after their product and the sign after it.
const KEEP_ALIVE: (i32, u32) = (3, 3);
/// A pause before the event loop is entered again after it failed.
const AGAIN: Duration = Duration::from_millis(100);

/// The way to libvirt.
pub(crate) struct Connection {
    uri: String,
    open: Mutex<Option<Connect>>,
}

/// Starts the thread that reads what libvirt says unasked; signs of life are among it. Before the first connection.
pub(crate) fn listen() -> io::Result<()> {
    // It would print every error itself.
    error::clear_error_callback();
    event::event_register_default_impl().map_err(io::Error::other)?;
    thread::Builder::new().name("events".to_owned()).spawn(|| {
        loop {
            if event::event_run_default_impl().is_err() {
                thread::sleep(AGAIN);
            }
        }
    })?;
    Ok(())
}

impl Connection {
    /// To this URI, not yet connected.
    pub(crate) fn new(uri: String) -> Self {
        Self { uri, open: Mutex::default() }
    }

    /// The connection.
    ///
    /// # Errors
    /// libvirt cannot be reached.
    pub(crate) fn get(&self) -> Result<Connect, Refusal> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connect) = open.as_ref().filter(|connect| connect.is_alive().unwrap_or(false)) {
            return Ok(connect.clone());
        }
        Ok(open.insert(self::open(&self.uri)?).clone())
    }

    /// To what it is connected.
    ///
    /// # Errors
    /// libvirt cannot be reached.
    pub(crate) fn hello(&self) -> Result<Hello, Refusal> {
        let connect = self.get()?;
        let said = |error| refusal(&error);
        Ok(Hello {
            library: version(Connect::get_version().map_err(said)?),
            daemon: version(connect.get_lib_version().map_err(said)?),
            hypervisor: version(connect.get_hyp_version().map_err(said)?),
            host: connect.get_hostname().map_err(said)?,
        })
    }
}

/// Connects to a libvirt.
///
/// # Errors
/// It cannot be reached.
pub(crate) fn open(uri: &str) -> Result<Connect, Refusal> {
    let connect = Connect::open(Some(uri)).map_err(|error| refusal(&error))?;
    let (interval, count) = KEEP_ALIVE;
    // A driver inside this process has no connection to keep alive, and refuses.
    let _ = connect.set_keep_alive(interval, count);
    Ok(connect)
}

/// An error of libvirt, as it is handed on.
pub(crate) fn refusal(error: &error::Error) -> Refusal {
    Refusal { code: error.code().to_raw(), message: error.message().to_owned(), lost: false }
}

/// `1002003` is `1.2.3`.
fn version(number: u32) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
}
