#include "native/import_slot.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace graph_train {

namespace {

struct Search {
  const char* library = nullptr;
  const char* symbol = nullptr;
  std::vector<void**> slots;
};

struct Table {
  uintptr_t start = 0, bytes = 0;
};

// glibc stores most addresses of the dynamic section absolute, others relative to the library's base.
uintptr_t absolute(uintptr_t base, uintptr_t address) { return address < base ? base + address : address; }

// Calls use a slot of the first kind or, in libraries that are bound at load time and have no PLT, of the second. Calls
// of virtual functions use the third, in the table of the class.
bool holds_address(const ElfW(Rela) & relocation) {
  const uint64_t type = ELF64_R_TYPE(relocation.r_info);
  return type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT || (type == R_X86_64_64 && relocation.r_addend == 0);
}

void add_slots(const dl_phdr_info& info, const ElfW(Dyn) * entry, Search* search) {
  uintptr_t names = 0, symbols = 0;
  Table calls, data;
  for (; entry->d_tag != DT_NULL; ++entry) {
    if (entry->d_tag == DT_STRTAB) names = absolute(info.dlpi_addr, entry->d_un.d_ptr);
    if (entry->d_tag == DT_SYMTAB) symbols = absolute(info.dlpi_addr, entry->d_un.d_ptr);
    if (entry->d_tag == DT_JMPREL) calls.start = absolute(info.dlpi_addr, entry->d_un.d_ptr);
    if (entry->d_tag == DT_PLTRELSZ) calls.bytes = entry->d_un.d_val;
    if (entry->d_tag == DT_RELA) data.start = absolute(info.dlpi_addr, entry->d_un.d_ptr);
    if (entry->d_tag == DT_RELASZ) data.bytes = entry->d_un.d_val;
  }
  if (names == 0 || symbols == 0) return;
  for (const Table& table : {calls, data}) {
    const auto* relocations = reinterpret_cast<const ElfW(Rela)*>(table.start);
    for (size_t i = 0; table.start != 0 && i < table.bytes / sizeof(*relocations); ++i) {
      if (!holds_address(relocations[i])) continue;
      const auto& imported = reinterpret_cast<const ElfW(Sym)*>(symbols)[ELF64_R_SYM(relocations[i].r_info)];
      if (std::strcmp(reinterpret_cast<const char*>(names) + imported.st_name, search->symbol) != 0) continue;
      search->slots.push_back(reinterpret_cast<void**>(info.dlpi_addr + relocations[i].r_offset));
    }
  }
}

int search_library(dl_phdr_info* info, size_t, void* data) {
  auto* search = static_cast<Search*>(data);
  const char* slash = std::strrchr(info->dlpi_name, '/');
  const char* file = slash == nullptr ? info->dlpi_name : slash + 1;
  if (std::strncmp(file, search->library, std::strlen(search->library)) != 0) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
    const auto* dynamic = reinterpret_cast<const ElfW(Dyn)*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    add_slots(*info, dynamic, search);
  }
  return 1;
}

// Protection flags of the page at an address; -1 if unknown.
int protection_at(uintptr_t address) {
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  if (maps == nullptr) return -1;
  int protection = -1;
  char line[512];
  while (protection < 0 && std::fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long begin = 0, end = 0;
    char rights[5] = "";
    if (std::sscanf(line, "%lx-%lx %4s", &begin, &end, rights) != 3 || address < begin || address >= end) continue;
    protection =
        (rights[0] == 'r' ? PROT_READ : 0) | (rights[1] == 'w' ? PROT_WRITE : 0) | (rights[2] == 'x' ? PROT_EXEC : 0);
  }
  std::fclose(maps);
  return protection;
}

// Some builds write-protect these slots after filling them; the protection is restored afterwards.
bool fill(void** slot, void* function) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(slot);
  void* start = reinterpret_cast<void*>(address / page * page);
  const int before = protection_at(address);
  if (before < 0) return false;
  const bool writable = (before & PROT_WRITE) != 0;
  if (!writable && mprotect(start, page, before | PROT_WRITE) != 0) return false;
  __atomic_store_n(slot, function, __ATOMIC_RELEASE);
  if (!writable) mprotect(start, page, before);
  return true;
}

}  // namespace

int replace_import(const char* library, const char* symbol, void* function) {
  Search search{library, symbol, {}};
  dl_iterate_phdr(search_library, &search);
  int replaced = 0;
  for (void** slot : search.slots) replaced += fill(slot, function);
  return replaced;
}

}  // namespace graph_train
