/* Waking a process from its snapshot: the memory is mapped, copy on write, where it was, and the processor goes on where it
 * slept. That takes a tenth of what it takes to start the interpreter and to import anew.
 *
 * Two processes share the addresses here. Debian's interpreter lies at 4 MB, its heap at most 1 GB above, its libraries and its
 * stack far up, anywhere. This program is linked to 1.5 GB: there they do not meet, and its break, from which the heap will
 * grow on, lies above the saved heap, as the C library wants it. */

#define _GNU_SOURCE
#include "snapshot.h"

#ifdef __x86_64__
#include <asm/prctl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static int is_fit(const struct snapshot *saved, const char *folder)
{
    const struct saved_file *files = (const void *)(saved + 1);
    uint32_t cpu[CPU_WORDS];
    struct stat now;

    if (strcmp((const char *)saved + saved->folder, folder))
        return 0;
    know_cpu(cpu);
    if (memcmp(cpu, saved->cpu, sizeof cpu))
        return 0;
    for (uint64_t i = 0; i < saved->files; i++)
        if (stat((const char *)saved + files[i].path, &now) < 0 || (uint64_t)now.st_size != files[i].bytes ||
            now.st_mtim.tv_sec != files[i].seconds || now.st_mtim.tv_nsec != files[i].nanoseconds)
            return 0;
    return 1;
}

void wake(int file, const char *folder, void *stack)
{
    static _Alignas(8) char header[MOST_HEADER_BYTES];
    const struct snapshot *saved = (const void *)header;
    ssize_t length = read(file, header, sizeof header);
    const struct saved_region *region, *end;
    struct stat status;
    register uint64_t r8 __asm__("r8"), r9 __asm__("r9"), r10 __asm__("r10");

    if (length < (ssize_t)sizeof *saved || memcmp(saved->magic, SNAPSHOT_MAGIC, sizeof saved->magic) ||
        (uint64_t)length < saved->header_bytes || fstat(file, &status) < 0 || (uint64_t)status.st_size != saved->bytes ||
        !is_fit(saved, folder))
        return;
    region = (const void *)((const struct saved_file *)(saved + 1) + saved->files);
    for (end = region + saved->regions; region < end; region++) {
        void *place = (void *)region->address;
        int flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | (region->offset ? 0 : MAP_ANONYMOUS | MAP_NORESERVE);

        /* What is there already is this process's own, which the kernel puts anywhere: once in some thousand times here. */
        if (mmap(place, region->bytes, region->protection, flags, region->offset ? file : -1, region->offset) != place)
            return;
    }
    close(file);
    if (saved->thread_id)
        *(int *)saved->thread_id = syscall(SYS_gettid);
    r8 = saved->frame, r9 = (uint64_t)stack, r10 = saved->instruction;
    /* From the change of fs on this program's own C library is lost, so all is done in one go. */
    __asm__ volatile("syscall\n\tmov %2, %%rsp\n\tmov %3, %%rbp\n\tmov %4, %%rax\n\tjmp *%5"
                     :
                     : "D"(ARCH_SET_FS), "S"(saved->thread), "d"(saved->stack), "r"(r8), "r"(r9), "r"(r10), "a"(SYS_arch_prctl)
                     : "rcx", "r11", "memory");
    __builtin_unreachable();
}

#else

void wake(int file, const char *folder, void *stack)
{
    (void)file, (void)folder, (void)stack; /* no other processor's way to go on is known here */
}
#endif
