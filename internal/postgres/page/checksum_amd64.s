#include "textflag.h"

// ROUND is one round of pg_checksum_block over eight lanes that hold the word
// already: s = s*prime ^ s>>17.
#define ROUND(s, t) \
	VPMULLD Y8, s, t \
	VPSRLD $17, s, s \
	VPXOR t, s, s

#define ROUNDS \
	ROUND(Y0, Y4) \
	ROUND(Y1, Y5) \
	ROUND(Y2, Y6) \
	ROUND(Y3, Y7)

// func mixAVX2(sums *[32]uint32, p *[8192]byte)
// What mixScalar does, all 32 lanes at once in Y0 to Y3.
TEXT ·mixAVX2(SB), NOSPLIT, $0-16
	MOVQ sums+0(FP), DI
	MOVQ p+8(FP), SI
	VMOVDQU (DI), Y0
	VMOVDQU 32(DI), Y1
	VMOVDQU 64(DI), Y2
	VMOVDQU 96(DI), Y3
	MOVL $16777619, AX
	VMOVD AX, X8
	VPBROADCASTD X8, Y8
	MOVQ $64, CX

row:
	VPXOR (SI), Y0, Y0
	VPXOR 32(SI), Y1, Y1
	VPXOR 64(SI), Y2, Y2
	VPXOR 96(SI), Y3, Y3
	ROUNDS
	ADDQ $128, SI
	DECQ CX
	JNZ  row

	// Two rounds of zeros, as finish.
	ROUNDS
	ROUNDS
	VMOVDQU Y0, (DI)
	VMOVDQU Y1, 32(DI)
	VMOVDQU Y2, 64(DI)
	VMOVDQU Y3, 96(DI)
	VZEROUPPER
	RET
