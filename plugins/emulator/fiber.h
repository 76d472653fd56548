// Fibers: functions with a stack each, which give way to one another by hand.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

constexpr size_t kStackBytes = 256 << 10;

#ifdef __x86_64__

using Stack = void*;  // its top, where the registers stand that a call preserves

// Store where this fiber stands and go on where that one stood. ucontext's switch would also ask the operating system
// for the signal mask, each time, which takes most of an emulation's time.
extern "C" void dflash_switch_stack(Stack* save, const Stack* load);
asm(R"(
    .text
    .type dflash_switch_stack, @function
    .hidden dflash_switch_stack
dflash_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
inline void switch_stack(Stack* save, Stack* load) { dflash_switch_stack(save, load); }

// Make the first switch to `stack` call `entry`, which must not return.
inline void prepare_stack(Stack* stack, unsigned char* memory, void (*entry)()) {
  void** top = reinterpret_cast<void**>(memory + kStackBytes) - 2;  // so that rsp is off a multiple of 16 by 8 on entry
  *top = reinterpret_cast<void*>(entry);
  *stack = top - 6;
}

#else

using Stack = ucontext_t;

inline void switch_stack(Stack* save, Stack* load) { swapcontext(save, load); }

inline void prepare_stack(Stack* stack, unsigned char* memory, void (*entry)()) {
  getcontext(stack);
  stack->uc_stack.ss_sp = memory;
  stack->uc_stack.ss_size = kStackBytes;
  makecontext(stack, entry, 0);
}

#endif

}  // namespace emulator
