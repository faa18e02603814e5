use super::*;

/// Plays frames that lie in a tap, `more` of them arriving after each batch; the frames passed on before each call.
fn calls(pace: &mut Pace, mut waiting: usize, more: &[usize]) -> Vec<usize> {
    let (mut calls, mut passed) = (Vec::new(), 0);
    let mut more = more.iter();
    loop {
        let reads = pace.window();
        let got = reads.min(waiting);
        waiting -= got;
        passed += got;
        let again = pace.took(reads, got);
        let arrived = more.next();
        waiting += arrived.copied().unwrap_or(0);
        if !again {
            // Nothing new, no call.
            calls.extend((passed > 0).then_some(passed));
            passed = 0;
            if arrived.is_none() && waiting == 0 {
                return calls;
            }
        }
    }
}

#[test]
fn a_lone_frame_is_passed_on_at_once() {
    let mut pace = Pace::new();
    assert!(pace.is_single());
    assert_eq!(calls(&mut pace, 1, &[]), [1]);
    assert!(pace.is_single(), "and so is the next");
}

#[test]
fn reads_grow_to_a_batch_and_shrink_to_what_there_was() {
    let mut pace = Pace::new();
    let windows: Vec<usize> = (0..8)
        .map(|_| {
            assert!(pace.took(pace.window(), pace.window()));
            pace.window()
        })
        .collect();
    assert_eq!(windows, [2, 4, 8, 16, 32, 64, 64, 64]);
    assert!(pace.took(64, 20), "a burst: one more look");
    assert_eq!(pace.window(), 20);
    assert!(!pace.took(20, 0));
    assert_eq!(pace.window(), 1);
}

#[test]
fn a_few_frames_are_called_for_when_the_tap_is_empty() {
    let mut pace = Pace::new();
    // 1 + 2 + 4, then 3 of 8, fewer than a burst.
    assert_eq!(calls(&mut pace, 10, &[]), [10]);
    assert_eq!(calls(&mut pace, 1, &[0, 0, 1, 0, 0, 1]), [1, 1, 1], "ten frames are no dense traffic");
    assert!(pace.is_single());
}

#[test]
fn dense_frames_are_waited_for_a_bounded_number_of_looks() {
    let mut pace = Pace::new();
    calls(&mut pace, 200, &[]);
    assert!(!pace.is_single(), "more are to be expected");
    // One at a time, each a few looks after the last: without patience a call each.
    assert_eq!(calls(&mut pace, 1, &[0, 0, 1, 0, 0, 0, 1, 0, 1]), [4]);
    assert!(pace.is_single(), "so few are not dense");
    // Nothing at all is waited for eight looks long, once.
    calls(&mut pace, 200, &[]);
    let looks = (1..).find(|_| !pace.took(pace.window(), 0)).unwrap();
    assert_eq!(looks, 9);
    assert_eq!((1..).find(|_| !pace.took(pace.window(), 0)), Some(1));
}
