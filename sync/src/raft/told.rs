//! A value that is told to many, in the order in which they began to listen.
//!
//! Tokio's `watch` wakes those who wait in an order that it draws, so that no seed of a simulation would repeat a run. Here
//! every listener has a channel of its own. What may not happen: two tasks that wait on clones of one receiver.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Tells. When it is dropped its listeners learn that there will be nothing more.
#[derive(Debug)]
pub(super) struct Teller<T>(Listeners<T>);

/// Where to listen. Clones are the same place.
#[derive(Debug)]
pub(super) struct Listeners<T>(Arc<Mutex<Inner<T>>>);

#[derive(Debug)]
struct Inner<T> {
    value: T,
    ended: bool,
    channels: Vec<watch::Sender<T>>,
}

impl<T> Clone for Listeners<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Listeners<T> {
    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Listeners<T> {
    /// The value as it is.
    pub(super) fn value(&self) -> T {
        self.inner().value.clone()
    }

    /// A receiver of its own, which has seen the value as it is.
    pub(super) fn listen(&self) -> watch::Receiver<T> {
        let mut inner = self.inner();
        inner.channels.retain(|channel| !channel.is_closed());
        let (channel, receiver) = watch::channel(inner.value.clone());
        if !inner.ended {
            inner.channels.push(channel);
        }
        receiver
    }
}

impl<T: Clone> Teller<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Listeners(Arc::new(Mutex::new(Inner { value, ended: false, channels: Vec::new() }))))
    }

    /// Where to listen to it.
    pub(super) fn listeners(&self) -> Listeners<T> {
        self.0.clone()
    }

    /// Tells a value.
    pub(super) fn tell(&self, value: T) {
        let mut inner = self.0.inner();
        inner.channels.retain(|channel| channel.send(value.clone()).is_ok());
        inner.value = value;
    }
}

impl<T> Drop for Teller<T> {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        inner.ended = true;
        inner.channels.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_are_told_in_their_order_until_it_ends() {
        let teller = Teller::new(0);
        let listeners = teller.listeners();
        let order = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..40)
            .map(|number| {
                let (mut heard, order) = (listeners.listen(), Arc::clone(&order));
                tokio::spawn(async move {
                    assert!(!heard.has_changed().unwrap());
                    heard.changed().await.unwrap();
                    order.lock().unwrap().push((number, *heard.borrow_and_update()));
                    heard.changed().await.unwrap_err();
                })
            })
            .collect();
        tokio::task::yield_now().await;
        teller.tell(7);
        assert_eq!(listeners.value(), 7);
        let mut late = listeners.listen();
        tokio::task::yield_now().await;
        drop(teller);
        for task in tasks {
            task.await.unwrap();
        }
        late.changed().await.unwrap_err();
        assert_eq!(*order.lock().unwrap(), (0..40).map(|number| (number, 7)).collect::<Vec<_>>());
        listeners.listen().changed().await.unwrap_err();
    }
}
