// The operations of the emulator. The parser reads this list too: the position of a name is its
// number.
#pragma once

#define OPCODES(X)                                                                                      \
  X(NOP)                                                                                                \
  X(BRA)                                                                                                \
  X(RET) X(TRAP) X(BAR) X(BAR_WARP) X(FENCE) X(FENCE_PROXY) X(MOV32) X(MOV64) X(MOVP) X(                \
      MOVP_IMM) X(NOTP) X(ANDP) X(ORP) X(XORP) X(SREG) X(LDPARAM) X(PACK16) X(UNPACK16) X(PACK32)       \
      X(UNPACK32) X(PACK16_64) X(UNPACK16_64) X(ADD16) X(ADD32) X(ADD64) X(SUB16) X(SUB32) X(           \
          SUB64) X(MULLO16) X(MULLO32) X(MULLO64) X(MULHI_S32) X(MULHI_U32) X(MULHI_S64)                \
          X(MULHI_U64) X(MULW_S16) X(MULW_U16) X(MULW_S32) X(MULW_U32) X(MADLO32) X(MADLO64) X(         \
              MADW_S32) X(MADW_U32) X(DIV_S32) X(DIV_U32) X(DIV_S64) X(DIV_U64) X(REM_S32)              \
              X(REM_U32) X(REM_S64) X(REM_U64) X(MIN_S16) X(MAX_S16) X(MIN_U16) X(MAX_U16) X(           \
                  MIN_S32) X(MIN_U32) X(MIN_S64) X(MIN_U64) X(MAX_S32) X(MAX_U32) X(MAX_S64) X(MAX_U64) \
                  X(NEG16) X(NEG32) X(NEG64) X(ABS_S32) X(ABS_S64) X(NOT16) X(NOT32) X(NOT64) X(        \
                      AND16) X(AND32) X(AND64) X(OR16) X(OR32) X(OR64) X(XOR16) X(XOR32) X(XOR64)       \
                      X(SHL16) X(SHL32) X(SHL64) X(SHR_U16) X(SHR_S16) X(SHR_U32) X(SHR_S32) X(         \
                          SHR_U64) X(SHR_S64) X(SHF_L) X(SHF_R)                                         \
                          X(BFE_U32) X(BFE_S32) X(BFI32) X(PRMT) X(LOP3) X(POPC32) X(CLZ32) X(          \
                              BREV32) X(BFIND_U32) X(SELP32) X(SELP64) X(SETP) X(ADD_F32) X(SUB_F32)    \
                              X(MUL_F32) X(FMA_F32) X(MIN_F32) X(                                       \
                                  MAX_F32) X(NEG_F32) X(ABS_F32) X(DIV_RN_F32) X(DIV_FULL_F32)          \
                                  X(SQRT_RN_F32) X(SQRT_APPROX_F32) X(RSQRT_APPROX_F32) X(              \
                                      RCP_RN_F32) X(RCP_APPROX_F32) X(EX2_F32)                          \
                                      X(LG2_F32) X(SIN_F32) X(COS_F32) X(TANH_F32) X(ADD_F64) X(        \
                                          SUB_F64) X(MUL_F64) X(FMA_F64) X(MIN_F64) X(MAX_F64)          \
                                          X(NEG_F64) X(ABS_F64) X(DIV_F64) X(SQRT_F64) X(RCP_F64) X(    \
                                              ADD_H) X(SUB_H) X(MUL_H) X(FMA_H) X(MIN_H)                \
                                              X(MAX_H) X(NEG_H) X(ABS_H) X(ADD_H2) X(SUB_H2) X(         \
                                                  MUL_H2) X(FMA_H2) X(MIN_H2)                           \
                                                  X(MAX_H2) X(                                          \
                                                      NEG_H2) X(ABS_H2) X(CVT)                          \
                                                      X(CVT_PACK_H2) X(SHFL) X(VOTE) X(                 \
                                                          ACTIVEMASK) X(REDUX) X(ELECT) X(LD_GLOBAL)    \
                                                          X(ST_GLOBAL) X(LD_SHARED) X(ST_SHARED) X(     \
                                                              ATOM_GLOBAL) X(LDMATRIX) X(STMATRIX)      \
                                                              X(                                        \
                                                                  CP_ASYNC) X(CP_COMMIT)                \
                                                                  X(CP_WAIT) X(MMA) X(                  \
                                                                      WGMMA_FENCE) X(WGMMA_COMMIT)      \
                                                                      X(WGMMA_WAIT) X(WGMMA) X(         \
                                                                          MBAR_INIT) X(MBAR_INVAL)      \
                                                                          X(MBAR_ARRIVE) X(             \
                                                                              MBAR_WAIT) X(BULK_LOAD)   \
                                                                              X(BULK_STORE) X(          \
                                                                                  BULK_COMMIT)          \
                                                                                  X(BULK_WAIT) X(       \
                                                                                      MAP_REPLACE)      \
                                                                                      X(MAP_COPY)

enum Op {
#define X(n) n,
  OPCODES(X)
#undef X
};
