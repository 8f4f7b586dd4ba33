//! Functions that keep a frame pointer, as all of some distributions do.

use super::*;

/// A function like `malloc` with `body` in it, which comes back from its frame by `epilogue`.
fn framed(
    body: impl FnOnce(&mut CodeAssembler) -> Written,
    epilogue: impl Fn(&mut CodeAssembler) -> Written,
) -> Vec<u8> {
    code(|a| {
        let mut failed = a.create_label();
        a.push(rbp)?; // 0
        a.mov(rbp, rsp)?; // 1
        a.push(rbx)?; // 4
        a.sub(rsp, 24)?; // 5
        a.mov(qword_ptr(rbp - 24), rdi)?; // 9
        body(a)?; // 13
        a.mov(rax, qword_ptr(r8))?;
        a.test(rax, rax)?;
        a.je(failed)?;
        a.mov(rbx, qword_ptr(rbp - 8))?;
        epilogue(a)?;
        a.ret()?;
        a.set_label(&mut failed)?;
        a.ud2()
    })
}

fn leave(a: &mut CodeAssembler) -> Written {
    a.leave()
}

/// The size is lost in its register and comes back from the frame.
fn reload(a: &mut CodeAssembler) -> Written {
    a.xor(edi, edi)?; // 13
    a.mov(rdi, qword_ptr(rbp - 24)) // 15
}

#[test]
fn words_are_found_through_the_frame_pointer() {
    let expected = Midway::Known {
        size: Some(Register::Rdi),
        block: Register::Rax,
        when: unless_zero(),
        caller_word: 5,
        rbp_word: Some(4),
    };
    let restored = |a: &mut CodeAssembler| {
        a.lea(rsp, rbp - 8)?;
        a.pop(rbx)?;
        a.pop(rbp)
    };

    let found =
        [framed(reload, leave), framed(reload, restored)].map(|code| midway(&code, Calls::Unknown));

    assert_eq!(found, [Some(vec![(25, expected)]), Some(vec![(25, expected)])]);
}

#[test]
fn write_through_the_frame_pointer_is_seen() {
    let overwritten = |a: &mut CodeAssembler| {
        a.mov(dword_ptr(rbp - 20), 1)?;
        reload(a)
    };

    assert_eq!(find(&framed(overwritten, leave), Calls::Unknown), None);
}

#[test]
fn frame_whose_pointer_is_given_away_is_refused() {
    type Write = fn(&mut CodeAssembler) -> Written;
    let odd: [Write; 4] = [
        |a| a.mov(rdx, rbp),
        |a| a.lea(rdx, rbp - 24),
        |a| a.mov(qword_ptr(rbp + r9 * 8), rdx),
        |a| a.add(rdx, rbp),
    ];
    for odd in odd {
        let body = |a: &mut CodeAssembler| {
            odd(a)?;
            reload(a)
        };
        assert_eq!(find(&framed(body, leave), Calls::Unknown), None);
    }
}

#[test]
fn return_with_the_frame_in_place_is_refused() {
    assert_eq!(find(&framed(reload, |_| Ok(())), Calls::Unknown), None);
}
