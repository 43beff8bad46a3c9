/* A snapshot: lowrt's process as it was with the interpreter started and every module imported. snapshot.py writes one into a
 * file, which begins with this header, then `struct saved_file` and `struct saved_region` as often as it says, then the paths;
 * the memory follows, in whole pages. snapshot.py has the same in Python. */

#ifndef LOWRT_SNAPSHOT_H
#define LOWRT_SNAPSHOT_H

#include <stdint.h>

#define SNAPSHOT_MAGIC "lowrt 1\n"
#define CPU_WORDS 8
#define MOST_HEADER_BYTES 32768 /* with what stands before the memory */

struct snapshot {
    char magic[8];
    uint64_t bytes, header_bytes; /* of the file, and of what stands before its memory */
    uint32_t cpu[CPU_WORDS];      /* what the processor can do: the C library has chosen its functions by that */
    uint64_t instruction, stack, frame, thread; /* rip, rsp, rbp and fs, where it sleeps */
    uint64_t thread_id;           /* where the C library keeps gettid()'s answer */
    uint64_t folder;              /* of the launcher: where in this file its name is */
    uint64_t files, regions;
};

struct saved_file { /* what the process was made from: changed files make the snapshot stale */
    uint64_t bytes;
    int64_t seconds, nanoseconds; /* of its last change */
    uint64_t path;                /* where in this file its name is */
};

struct saved_region {
    uint64_t address, bytes;
    uint64_t offset; /* in this file; 0: the region is all zeros */
    uint64_t protection;
};

/* Goes on where the process slept, in FILE (an open snapshot, made for the launcher in FOLDER), with the arguments and the
 * environment that the kernel has put at STACK. Returns, with nothing done, where the snapshot is not fit. */
void wake(int file, const char *folder, void *stack);

#ifdef __x86_64__
#include <cpuid.h>

static inline void know_cpu(uint32_t words[CPU_WORDS])
{
    uint32_t *a = words, unused;

    __cpuid(1, a[0], unused, a[1], a[2]);
    __cpuid_count(7, 0, unused, a[3], a[4], a[5]);
    __cpuid_count(0xd, 0, a[6], a[7], unused, unused); /* which registers there are to be saved, and their size */
}
#endif

#endif
