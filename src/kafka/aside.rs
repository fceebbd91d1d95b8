//! Clients of librdkafka that end without holding anybody up.

use std::ops::Deref;
use std::sync::Arc;
use std::thread;

/// A share of a client, whose last owner does not wait for its end.
///
/// Its threads look only each 100 ms whether they are to end. And should the clock have been set back since, one may sleep for as
/// long as it was set back: librdkafka waits by the time of day.
pub(super) struct Aside<C: Send + Sync + 'static>(Option<Arc<C>>);

impl<C: Send + Sync> From<Arc<C>> for Aside<C> {
    fn from(client: Arc<C>) -> Aside<C> {
        Aside(Some(client))
    }
}

impl<C: Send + Sync> Clone for Aside<C> {
    fn clone(&self) -> Aside<C> {
        Arc::clone(self).into()
    }
}

impl<C: Send + Sync> Deref for Aside<C> {
    type Target = Arc<C>;

    fn deref(&self) -> &Arc<C> {
        self.0.as_ref().expect("it is there until this is dropped")
    }
}

impl<C: Send + Sync> Drop for Aside<C> {
    fn drop(&mut self) {
        if let Some(client) = self.0.take().and_then(Arc::into_inner) {
            // Where there can be no thread it ends here.
            drop(thread::Builder::new().name("ends".to_owned()).spawn(move || drop(client)));
        }
    }
}
