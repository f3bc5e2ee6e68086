use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// More than one buffer.
fn long() -> Vec<u8> {
    (0..=250).cycle().take(BUFFER_BYTES * 2 + 1_000).collect()
}

#[tokio::test]
async fn pieces_of_any_size_come_in_order() {
    for piece in [1_000, 4_096, BUFFER_BYTES, BUFFER_BYTES * 3] {
        let (mut there, here) = duplex(BUFFER_BYTES * 2);
        let sent = long();
        let (copy, writer) = (sent.clone(), async move {
            there.write_all(&sent).await.unwrap();
        });
        let writer = tokio::spawn(writer);
        let mut here = Ahead::new(here);
        let (mut got, mut space) = (Vec::new(), vec![0; piece]);
        loop {
            let read = here.read(&mut space).await.unwrap();
            if read == 0 {
                break;
            }
            got.extend_from_slice(&space[..read]);
        }
        writer.await.unwrap();
        assert!(got == copy, "in pieces of {piece}");
    }
}

#[tokio::test]
async fn nothing_is_kept_once_all_is_read() {
    let (mut there, here) = duplex(100);
    let mut here = Ahead::new(here);
    there.write_all(b"review").await.unwrap();
    let mut part = [0; 4];
    here.read_exact(&mut part).await.unwrap();
    assert!(here.unread.is_some());
    here.read_exact(&mut part[..2]).await.unwrap();
    assert!(here.unread.is_none());
}

#[tokio::test]
async fn two_streams_do_not_share_a_buffer() {
    let mut read = Vec::new();
    let mut streams = Vec::new();
    for mark in *b"abcd" {
        let (mut there, here) = duplex(100);
        there.write_all(&[mark; 10]).await.unwrap();
        streams.push((there, Ahead::new(here)));
    }
    for _half in 0..2 {
        for (_there, here) in &mut streams {
            let mut half = [0; 5];
            here.read_exact(&mut half).await.unwrap();
            read.extend_from_slice(&half);
        }
    }
    assert_eq!(read, b"aaaaabbbbbcccccdddddaaaaabbbbbcccccddddd");
}

#[tokio::test]
async fn an_error_below_comes_through_after_what_was_read() {
    let below = four_bytes_and_a_reset();
    let mut here = Ahead::new(below);
    let mut two = [0; 2];
    here.read_exact(&mut two).await.unwrap();
    here.read_exact(&mut two).await.unwrap();
    assert_eq!(two, *b"cd");
    let error = here.read(&mut two).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Four bytes, then a reset.
fn four_bytes_and_a_reset() -> impl AsyncRead + Unpin {
    struct Reset(&'static [u8]);

    impl AsyncRead for Reset {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let bytes = std::mem::take(&mut self.0);
            if bytes.is_empty() {
                return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
            }
            out.put_slice(bytes);
            Poll::Ready(Ok(()))
        }
    }

    Reset(b"abcd")
}
