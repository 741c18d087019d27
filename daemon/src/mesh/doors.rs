//! How many strangers may be at the door at once: in all, and from one address.
//!
//! A stranger is a connection that was not admitted yet. Who floods from one address fills that address's places and
//! nobody else's; who was admitted counts no more.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// The places at the door.
#[derive(Debug)]
pub(super) struct Doors {
    most: usize,
    most_of_one: usize,
    inside: Mutex<HashMap<IpAddr, usize>>,
}

/// One stranger's place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    doors: Arc<Doors>,
    from: IpAddr,
}

impl Doors {
    /// At most `most` strangers, and `most_of_one` from one address.
    pub(super) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self { most, most_of_one, inside: Mutex::default() })
    }

    /// A place, where there is one.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Stranger> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if inside.values().sum::<usize>() >= self.most {
            return None;
        }
        let of_one = inside.entry(from).or_default();
        if *of_one >= self.most_of_one {
            return None;
        }
        *of_one += 1;
        Some(Stranger { doors: Arc::clone(self), from })
    }

    /// Whether so many are there that an address has to prove that it is one before it gets a place.
    pub(super) fn crowded(&self) -> bool {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).values().sum::<usize>() >= self.most / 4
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut inside = self.doors.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = inside.get_mut(&self.from) {
            *of_one -= 1;
            if *of_one == 0 {
                inside.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_fills_its_own_places_only() {
        let doors = Doors::new(4, 2);
        let [one, two, three]: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| ip.parse().unwrap());
        let first = doors.enter(one).unwrap();
        let _second = doors.enter(one).unwrap();
        assert!(doors.enter(one).is_none(), "its places are taken");
        let _others = [doors.enter(two).unwrap(), doors.enter(two).unwrap()];
        assert!(doors.enter(three).is_none() && doors.crowded(), "all places are taken");
        drop(first);
        assert!(doors.enter(three).is_some());
        drop(_second);
        drop(_others);
        assert!(doors.inside.lock().unwrap().is_empty(), "nothing is kept of who has gone");
    }
}
