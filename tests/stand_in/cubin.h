// The kernels of a cubin, by its own symbol table: an ELF file, with a section of facts for each kernel.
#pragma once

#include <elf.h>

#include <map>
#include <string>

namespace stand_in {

struct KernelFacts {
  int param_bytes = 0;
  int max_threads = 1024;  // by __launch_bounds__
  int static_shared = 0;   // bytes
};

struct Cubin {
  int arch = 0;  // 10 * major + minor; 0: not a cubin
  std::map<std::string, KernelFacts> kernels;
};

namespace cubin_format {
constexpr int kWords = 4;                              // formats of an entry of .nv.info: some bytes follow,
constexpr int kParamBytes = 0x19, kMaxThreads = 0x05;  // or the value stands in the entry
}  // namespace cubin_format

inline void read_facts(const unsigned char* at, size_t bytes, KernelFacts* facts) {
  for (size_t i = 0; i + 4 <= bytes;) {
    const int format = at[i], what = at[i + 1], value = at[i + 2] | at[i + 3] << 8;
    i += 4;
    if (what == cubin_format::kParamBytes) facts->param_bytes = value;
    if (format != cubin_format::kWords) continue;
    if (what == cubin_format::kMaxThreads && value >= 4) facts->max_threads = at[i] | at[i + 1] << 8;
    i += value;
  }
}

inline Cubin read_cubin(const void* image) {
  Cubin cubin;
  const auto* bytes = static_cast<const unsigned char*>(image);
  const auto* header = static_cast<const Elf64_Ehdr*>(image);
  constexpr int kMachine = 190, kAbi = 8;  // of CUDA 13's compilers
  if (std::string(bytes, bytes + SELFMAG) != ELFMAG || header->e_machine != kMachine) return cubin;
  if (header->e_ident[EI_ABIVERSION] != kAbi) return cubin;
  cubin.arch = header->e_flags >> 8 & 0xff;
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes + header->e_shoff);
  const auto* names = reinterpret_cast<const char*>(bytes + sections[header->e_shstrndx].sh_offset);
  std::map<std::string, const Elf64_Shdr*> by_name;
  for (int i = 0; i < header->e_shnum; ++i) by_name[names + sections[i].sh_name] = &sections[i];
  const Elf64_Shdr* symbols = by_name.at(".symtab");
  const auto* symbol = reinterpret_cast<const Elf64_Sym*>(bytes + symbols->sh_offset);
  const auto* texts = reinterpret_cast<const char*>(bytes + sections[symbols->sh_link].sh_offset);
  for (size_t i = 0; i < symbols->sh_size / sizeof(Elf64_Sym); ++i) {
    const std::string name = texts + symbol[i].st_name;
    const auto info = by_name.find(".nv.info." + name);
    if (ELF64_ST_TYPE(symbol[i].st_info) != STT_FUNC || info == by_name.end()) continue;
    KernelFacts& facts = cubin.kernels[name];
    read_facts(bytes + info->second->sh_offset, info->second->sh_size, &facts);
    const auto shared = by_name.find(".nv.shared." + name);
    const int reserved = cubin.arch >= 90 ? 1 << 10 : 0;  // the system's, beside a kernel's own
    if (shared != by_name.end()) facts.static_shared = static_cast<int>(shared->second->sh_size) - reserved;
  }
  return cubin;
}

}  // namespace stand_in
